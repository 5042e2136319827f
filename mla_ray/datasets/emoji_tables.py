"""The emoji tables of a language: captions, names, and a lexicon where there is one."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import category

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from mla_ray.data.corpus import Corpus
from mla_ray.datasets import emoji as emoji_data
from mla_ray.datasets.emoji import Emoji
from mla_ray.datasets.lexicons import Lexicon, lexicon
from mla_ray.runtime.progress import Progress, Report
from mla_ray.runtime.storage import at, is_local, read_json, upload, write_json


@dataclass(frozen=True)
class Tables:
    """The emoji tables of one language."""

    captions: pa.Table
    pairs: list[pa.Table]
    files: list[Path]
    """Of `captions`, then of `pairs`."""
    note: str

    def corpus(self, language: str) -> Corpus:
        return Corpus(language, self.files[1:], self.files[0])

    def split(self, name: str) -> pa.Table:
        return self.captions.filter(pa.compute.equal(self.captions["split"], name))


def write_tables(
    data: Path, languages: Sequence[str], out: Path, report: Report
) -> dict[str, Path]:
    """Write captions.parquet, with all `languages`, and a pairs-LANGUAGE.parquet each."""
    emoji = Emoji(data / "emoji")
    total, done = len(emoji.concepts), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(Progress("drawing emoji", done, total))

    out.mkdir(parents=True, exist_ok=True)
    paths = {"captions": out / "captions.parquet"}
    _write(emoji_data.captions(emoji, languages, advance), paths["captions"])
    for language in languages:
        if language != "en":
            paths[language] = out / f"pairs-{language}.parquet"
            _write(emoji_data.pairs(emoji, language), paths[language])
    return paths


def local_tables(language: str, data: Path, report: Report) -> Tables:
    """The demo's tables, made unless they are there; with a lexicon where there is one."""
    out = data / "emoji" / f"tables-{language}"
    if not (out / f"pairs-{language}.parquet").exists():
        write_tables(data, ["en", language], out, report)
    files = [out / "captions.parquet", out / f"pairs-{language}.parquet"]
    pairs = [pq.read_table(files[1])]
    found, file = _lexicon(language, data, out)
    note = found.note
    if found.pairs.num_rows:
        files.append(file)
        pairs.append(found.pairs)
        note += ", in half of every NLT batch"
    return Tables(pq.read_table(files[0]), pairs, files, note)


def _lexicon(language: str, data: Path, out: Path) -> tuple[Lexicon, Path]:
    """Pairs of words the native knows; made anew while a source is missing."""
    path = out / f"lexicon-{language}.parquet"
    if path.exists() and not (kept := Lexicon.of_table(pq.read_table(path))).missing:
        return kept, path
    labels = Emoji(data / "emoji").labels("en").values()
    texts = (text for label in labels for text in (label.name, *label.keywords))
    known = {word for text in texts for word in words_of(text)}
    found = lexicon(language, data / "lexicons", known)
    _write(found.table(), path)
    return found, path


def words_of(text: str) -> list[str]:
    """Runs of letters and their marks, lower-cased; in Devanagari and Thai marks are vowels."""
    return "".join(c if category(c)[0] in "LM" else " " for c in text.lower()).split()


def _write(table: pa.Table, path: Path) -> None:
    scratch = path.with_suffix(".tmp")
    pq.write_table(table, scratch)
    scratch.replace(path)


def emoji_tables(language: str, data: UPath, report: Report) -> list[UPath]:
    """The emoji tables of a language in `data`: captions, names, and a lexicon if there is one."""
    if is_local(data):
        return [at(file) for file in local_tables(language, Path(data.path), report).files]
    record = data / "emoji" / f"tables-{language}.json"
    if not record.exists():
        with tempfile.TemporaryDirectory() as scratch:
            made = local_tables(language, Path(scratch), report)
            upload(made.files[0].parent, data / "emoji" / f"tables-{language}")
        write_json(record, [file.name for file in made.files])
    names: list[str] = read_json(record)
    return [data / "emoji" / f"tables-{language}" / name for name in names]
