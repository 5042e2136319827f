"""Emoji tables of a language: captions, name pairs, and a lexicon if one is available.

    emoji/tables-v3-de/captions.parquet, pairs-de.parquet
    emoji/tables-v3-de/lexicon-1a2b3c4d5e6f.parquet     name: digest of the content
    emoji/tables-v3-de.json                             only at a URL: files, missing sources

Written files are never removed, so a resumed run continues with the tables that it started with.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unicodedata import category

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from mla_ray.data.blocks import fingerprint
from mla_ray.data.corpus import Corpus
from mla_ray.data.parquet import write_parquet
from mla_ray.datasets import emoji as emoji_data
from mla_ray.datasets.emoji import Emoji
from mla_ray.datasets.lexicons import Lexicon, lexicon
from mla_ray.runtime.progress import Report, counting
from mla_ray.runtime.storage import (
    as_path,
    download,
    is_file,
    is_local,
    names_in,
    read_json,
    write_bytes,
    write_json,
)

TABLES = "tables-v3-{language}"
"""Name of the tables' folder.

Since version 2, no test concept shares a drawing or a name with a training concept. Since version
3, no two pairs differ in invisible characters only.
"""
EARLIER = ("tables-v2-{language}", "tables-{language}")
"""Folders of earlier versions, for runs that started with them."""


@dataclass(frozen=True)
class EmojiTables:
    """Emoji tables of one language."""

    captions: pa.Table
    pairs: list[pa.Table]
    files: list[Path]
    """Files of `captions`, then of `pairs`."""
    note: str
    """Summary of the lexicon, for people."""
    missing: Mapping[str, str]
    """Lexicon sources that could not be read, with the reason."""

    def corpus(self, language: str) -> Corpus:
        """Return the corpus for an acquisition from these tables."""
        return Corpus(language, self.files[1:], self.files[0])

    def split(self, name: str) -> pa.Table:
        """Return the captions of one split."""
        return self.captions.filter(pa.compute.equal(self.captions["split"], name))


def write_tables(
    data: Path, languages: Sequence[str], out: Path, report: Report
) -> dict[str, Path]:
    """Write captions.parquet with all `languages`, and one pairs-LANGUAGE.parquet per language.

    English has no pairs file.

    Returns:
        The path of each table, by language code. The caption table's key is `captions`.

    """
    emoji = Emoji(data / "emoji")
    advance = counting(report, "drawing emoji", len(emoji.concepts))
    paths = {"captions": out / "captions.parquet"}
    write_parquet(as_path(paths["captions"]), emoji_data.captions(emoji, languages, advance))
    for language in languages:
        if language != "en":
            paths[language] = out / f"pairs-{language}.parquet"
            write_parquet(as_path(paths[language]), emoji_data.pairs(emoji, language))
    return paths


def local_tables(
    language: str, data: Path, report: Report, begun: UPath | None = None
) -> EmojiTables:
    """Return the emoji tables of a language, and write them if they are missing.

    A lexicon is included if one is available.

    Args:
        language: BCP-47 code.
        data: Folder of the datasets.
        report: Called while the emoji are drawn.
        begun: Document of a run as `tables_of_run` reads it. A run that has started keeps its
            tables.

    """
    if kept := tables_of_run(begun, language, as_path(data)):
        files = [Path(file.path) for file in kept]
        words = Lexicon.of_table(pq.read_table(files[2])) if files[2:] else None
    else:
        out = data / "emoji" / TABLES.format(language=language)
        files = [out / "captions.parquet", out / f"pairs-{language}.parquet"]
        if files[1].exists():
            words, file = _lexicon(language, data, out)
        else:
            Emoji(data / "emoji")  # downloads the packages, which both of these need
            with ThreadPoolExecutor(1) as beside:  # drawing is the work of other processes
                reading = beside.submit(_lexicon, language, data, out)
                write_tables(data, ["en", language], out, report)
                words, file = reading.result()
        files += [file] if words.pairs.num_rows else []
    note = words.note if words else "no dictionary pairs"
    if files[2:]:
        note += ", in half of every NLT batch"
    captions, *pairs = (pq.read_table(file) for file in files)
    return EmojiTables(captions, pairs, files, note, words.missing if words else {})


def tables_of_run(begun: UPath | None, language: str, data: UPath) -> list[UPath] | None:
    """Find the tables that a run started with, by the fingerprints in its document.

    Args:
        begun: run.json of an acquisition, or another document with the same `sources` entry.
        language: BCP-47 code.
        data: Folder of the datasets.

    Returns:
        The files, the caption table first. None if the run has not started, or if a file is no
        longer in `data`.

    """
    if begun is None or not is_file(begun):
        return None
    wanted: Mapping[str, Sequence[str]] = read_json(begun).get("sources", {}).get(language, {})
    folders = [data / "emoji" / name.format(language=language) for name in (TABLES, *EARLIER)]
    files = [folder / name for folder in folders for name in names_in(folder)]
    of_sum = {fingerprint(file): file for file in files if file.suffix == ".parquet"}
    # `Corpus.tables` names them "le-0000" and "nlt-0000", so the caption table sorts first.
    sums = [each for name in sorted(wanted) for each in wanted[name]]
    return [of_sum[each] for each in sums] if sums and of_sum.keys() >= set(sums) else None


def _lexicon(language: str, data: Path, out: Path) -> tuple[Lexicon, Path]:
    """Return the best lexicon of words that the native knows, and its file.

    While each written lexicon lacks a source, a new one is built. The best lexicon has the fewest
    missing sources, then the most pairs. Others are kept for the runs that started with them.
    """
    kept = {path: Lexicon.of_table(pq.read_table(path)) for path in out.glob("lexicon-*.parquet")}
    if all(each.missing for each in kept.values()):
        labels = Emoji(data / "emoji").labels("en").values()
        texts = (text for label in labels for text in (label.name, *label.keywords))
        known = {word for text in texts for word in words_of(text)}
        newest = lexicon(language, data / "lexicons", known)
        path = out / f"lexicon-{_digest(newest)}.parquet"
        if path not in kept:
            kept[path] = newest
            write_parquet(as_path(path), newest.table())
    best = min(kept, key=lambda path: (len(kept[path].missing), -kept[path].pairs.num_rows, path))
    return kept[best], best


def _digest(of: Lexicon) -> str:
    """Return a digest of the pairs, the sources and the names of the missing sources.

    The reasons for missing sources are excluded, because their wording varies between calls.
    """
    content = [of.pairs.to_pylist(), dict(of.sources), sorted(of.missing)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, as runs of letters and combining marks.

    In Devanagari and Thai, marks are vowels.
    """
    return "".join(c if category(c)[0] in "LM" else " " for c in text.lower()).split()


def table_files(
    language: str, data: UPath, report: Report, begun: UPath | None = None
) -> list[UPath]:
    """Return the files of a language's emoji tables, and write them if they are missing.

    At a URL, the tables are built in a temporary folder and uploaded. They are rebuilt while the
    lexicon lacks a source.

    Args:
        language: BCP-47 code.
        data: Folder of the datasets, a path or URL.
        report: Called while the emoji are drawn.
        begun: Document of a run as `tables_of_run` reads it. A run that has started keeps its
            tables.

    Returns:
        Captions, name pairs, and the lexicon if one is available.

    """
    if is_local(data):
        return [
            as_path(file) for file in local_tables(language, Path(data.path), report, begun).files
        ]
    if kept := tables_of_run(begun, language, data):
        return kept
    name = TABLES.format(language=language)
    folder, record = data / "emoji" / name, data / "emoji" / f"{name}.json"
    content = read_json(record) if is_file(record) else None
    if content is None or content["missing"]:
        with tempfile.TemporaryDirectory() as scratch:
            local, uploaded = Path(scratch) / "emoji" / name, names_in(folder)
            if uploaded:
                download(folder, local)
            tables = local_tables(language, Path(scratch), report)
            for file in local.iterdir():
                if file.name not in uploaded:
                    write_bytes(folder / file.name, file.read_bytes())
            content = {"files": [file.name for file in tables.files], "missing": [*tables.missing]}
        write_json(record, content)
    return [folder / name for name in content["files"]]
