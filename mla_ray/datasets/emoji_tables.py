"""The emoji tables of a language: captions, names, and a lexicon where there is one.

    emoji/tables-v3-de/captions.parquet, pairs-de.parquet
    emoji/tables-v3-de/lexicon-1a2b3c4d5e6f.parquet     named by what it holds
    emoji/tables-v3-de.json                             at a URL: which files, sources missing

What is written stays: a run that has begun goes on with its own tables, whatever was made since.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
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
"""Version 2: no test concept shares a drawing or a name with a training concept. Version 3: no two
pairs are the same but for characters that cannot be seen."""
EARLIER = ("tables-v2-{language}", "tables-{language}")
"""Folders that earlier versions wrote, for runs that began with them."""


@dataclass(frozen=True)
class EmojiTables:
    """The emoji tables of one language."""

    captions: pa.Table
    pairs: list[pa.Table]
    files: list[Path]
    """Of `captions`, then of `pairs`."""
    note: str
    missing: Mapping[str, str]
    """Why a source of the lexicon could not be read."""

    def corpus(self, language: str) -> Corpus:
        return Corpus(language, self.files[1:], self.files[0])

    def split(self, name: str) -> pa.Table:
        return self.captions.filter(pa.compute.equal(self.captions["split"], name))


def write_tables(
    data: Path, languages: Sequence[str], out: Path, report: Report
) -> dict[str, Path]:
    """Write captions.parquet, with all `languages`, and a pairs-LANGUAGE.parquet each."""
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
    """The demo's tables, made unless they are there; with a lexicon where there is one.

    Args:
        language: BCP-47.
        data: folder of the data sets.
        report: told of the drawing.
        begun: a file of a run as `tables_of_run` reads it. A run that has begun keeps its tables.

    """
    if kept := tables_of_run(begun, language, as_path(data)):
        files = [Path(file.path) for file in kept]
        words = Lexicon.of_table(pq.read_table(files[2])) if files[2:] else None
    else:
        out = data / "emoji" / TABLES.format(language=language)
        if not (out / f"pairs-{language}.parquet").exists():
            write_tables(data, ["en", language], out, report)
        files = [out / "captions.parquet", out / f"pairs-{language}.parquet"]
        words, file = _lexicon(language, data, out)
        files += [file] if words.pairs.num_rows else []
    note = words.note if words else "no dictionary pairs"
    if files[2:]:
        note += ", in half of every NLT batch"
    captions, *pairs = (pq.read_table(file) for file in files)
    return EmojiTables(captions, pairs, files, note, words.missing if words else {})


def tables_of_run(begun: UPath | None, language: str, data: UPath) -> list[UPath] | None:
    """The tables that a run began with, captions first, by the sums that it keeps of them.

    None if it has not begun, or they are not in `data` any more.

    Args:
        begun: run.json of an acquisition, or another document with its `sources`.
        language: BCP-47.
        data: folder of the data sets.

    """
    if begun is None or not is_file(begun):
        return None
    wanted: Mapping[str, Sequence[str]] = read_json(begun).get("sources", {}).get(language, {})
    folders = [data / "emoji" / name.format(language=language) for name in (TABLES, *EARLIER)]
    files = [folder / name for folder in folders for name in names_in(folder)]
    of_sum = {fingerprint(file): file for file in files if file.suffix == ".parquet"}
    # "le-0000" before "nlt-0000", as `Corpus.tables` names them.
    sums = [each for name in sorted(wanted) for each in wanted[name]]
    return [of_sum[each] for each in sums] if sums and of_sum.keys() >= set(sums) else None


def _lexicon(language: str, data: Path, out: Path) -> tuple[Lexicon, Path]:
    """Pairs of words the native knows: the best there is, tried again while a source is missing.

    One that was made stays beside a better one, for the runs that are of it.
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
    """Of its pairs, and of which sources it has; why one is missing is told otherwise each time."""
    content = [of.pairs.to_pylist(), dict(of.sources), sorted(of.missing)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def words_of(text: str) -> list[str]:
    """Runs of letters and their marks, lower-cased; in Devanagari and Thai marks are vowels."""
    return "".join(c if category(c)[0] in "LM" else " " for c in text.lower()).split()


def table_files(
    language: str, data: UPath, report: Report, begun: UPath | None = None
) -> list[UPath]:
    """The emoji tables of a language in `data`: captions, names, and a lexicon if there is one.

    Those that a run began with, if `begun` names them; see `local_tables`.
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
