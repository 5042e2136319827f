"""Data sets of all runs. The driver makes them once, and every run reads them.

Files:

    tables.json           the emoji tables at the start; a resumed reproduction uses the same
    tests/<set>.parquet   captions of a test set
    tests/<set>.npz       ids and features of its images
    bert/                 the BERT of `reproduce.bert`, trained on the texts of all languages

"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mla_ray.data.blocks import fingerprint
from mla_ray.data.corpus import Corpus
from mla_ray.data.parquet import write_parquet
from mla_ray.data.video import DECODING
from mla_ray.datasets import stamps
from mla_ray.datasets.debian import Unavailable
from mla_ray.datasets.emoji_tables import local_tables
from mla_ray.evaluation.evaluation import Gallery
from mla_ray.model.native import Native
from mla_ray.reproduce import bert
from mla_ray.runtime.console import stderr
from mla_ray.runtime.progress import Report, counting
from mla_ray.runtime.storage import as_path, read_json, write_json
from mla_ray.training.run_spec import sources

STEPS = 500
"""Number of steps of the BERT's pretraining."""


@dataclass(frozen=True)
class AblationData:
    """Locations of the data of all runs, on a disk that every run can read.

    Attributes:
        native: Name or folder of the native.
        store: Root of the feature stores.
        corpora: Training tables by language.
        tests: Folder of the test sets.
        sets: Names of the test sets.
        bert: Folder of the multilingual BERT.

    """

    native: str
    store: str
    corpora: dict[str, Corpus]
    tests: str
    sets: tuple[str, ...]
    bert: str

    def test(self, name: str) -> tuple[pa.Table, Gallery]:
        """Read the captions of a test set, in all languages and English, and its gallery."""
        folder = Path(self.tests)
        kept = np.load(folder / f"{name}.npz")
        gallery = Gallery(kept["ids"].tolist(), kept["features"])
        return pq.read_table(folder / f"{name}.parquet"), gallery

    def digest(self) -> str:
        """Return the SHA-256 of all tables. Records of runs on other data do not match it."""
        files = [
            Path(str(file))
            for corpus in self.corpora.values()
            for file in (*corpus.pairs, corpus.captions)
            if file
        ]
        files += [Path(self.tests) / f"{name}.parquet" for name in self.sets]
        total = hashlib.sha256()
        for file in files:
            total.update(hashlib.sha256(file.read_bytes()).digest())
        return total.hexdigest()


def prepare_data(
    native_name: str,
    languages: Sequence[str],
    data: Path,
    folder: Path,
    report: Report,
    *,
    with_bert: bool,
) -> AblationData:
    """Make the emoji tables, the test sets and optionally the BERT, unless they exist.

    If the stamps cannot be fetched, a warning is printed and the test set `stamps` is left out.

    Args:
        native_name: Name or folder of the native.
        languages: BCP-47 codes.
        data: Folder of downloaded data and frozen features.
        folder: Folder of the reproduction.
        report: Receives the progress.
        with_bert: Whether a run needs the multilingual BERT.

    """
    native, tests, learned = Native.load(native_name), folder / "tests", folder / "bert"
    sets, begun = ["emoji"], as_path(folder) / "tables.json"
    corpora: dict[str, Corpus] = {}
    emoji: list[pa.Table] = []
    texts: set[str] = set()
    for language in languages:  # one by one, so that memory holds the images of one language
        made = local_tables(language, data, report, begun)
        corpora[language] = made.corpus(language)
        emoji.append(made.split("test"))
        for pairs in made.pairs:
            texts.update(pairs["target"].to_pylist())
    before = read_json(begun)["sources"] if begun.exists() else {}
    write_json(begun, {"sources": before | sources(list(corpora.values()))})
    tags = ["en", *languages]
    about = _about(native, tags)
    files = [fingerprint(as_path(str(corpus.captions))) for corpus in corpora.values()]
    if not _kept(tests / "emoji", of_tables := about | {"tables": ",".join(files)}):
        _keep(native, emoji, tests / "emoji", of_tables, report)
    try:
        if not _kept(tests / "stamps", about):
            described = stamps.stamps(stamps.fetch(data / "stamps"), report)
            _keep(native, [stamps.captions(described, tags)], tests / "stamps", about, report)
        sets.append("stamps")
    except Unavailable as reason:
        stderr.print(f"without the stamps: {reason}")
    if with_bert and not (learned / "tokenizer.json").exists():
        advance = counting(report, "multilingual BERT", STEPS)
        bert.pretrain(sorted(texts), learned, steps=STEPS, progress=advance)
    return AblationData(
        native_name,
        str(data / "features"),
        corpora,
        str(folder / "tests"),
        tuple(sets),
        str(learned),
    )


def _about(native: Native, languages: Sequence[str]) -> dict[str, str]:
    """Return what a test set depends on besides its tables: languages, native and decoding."""
    return {"languages": ",".join(languages), "features": f"{native.fingerprint} {DECODING}"}


def _kept(path: Path, about: Mapping[str, str]) -> bool:
    """Return whether a test set with these languages, tables and features exists."""
    table = path.with_suffix(".parquet")
    if not table.exists():
        return False
    said = pq.read_schema(table).metadata or {}
    return all(said.get(name.encode()) == value.encode() for name, value in about.items())


def _keep(
    native: Native,
    tables: Sequence[pa.Table],
    path: Path,
    about: Mapping[str, str],
    report: Report,
) -> None:
    """Write the captions of all languages and the features of their images."""
    columns = ["image_id", "language", "caption"]
    rows = pa.concat_tables([table.select(columns) for table in tables])
    rows = rows.group_by(columns, use_threads=False).aggregate([])  # English is in every table
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = pa.concat_tables([table.select(["image_id", "image"]) for table in tables])
    count = len(pa.compute.unique(whole["image_id"]))
    gallery = Gallery.of(native, whole, counting(report, f"{path.name} images", count))
    np.savez(path.with_suffix(".npz"), ids=np.array(gallery.ids), features=gallery.features)
    # Written last, because `_kept` takes this file as a sign that the test set is complete.
    write_parquet(as_path(path.with_suffix(".parquet")), rows.replace_schema_metadata(dict(about)))


def part_of(corpus: Corpus, share: float, seed: int, folder: Path) -> Corpus:
    """Write a random share of the training rows of every table to `folder`.

    From a caption table, images are drawn, each with all its captions in the language.

    Args:
        corpus: The full corpus.
        share: Share of the rows or images, from 0 to 1. At least two are kept.
        seed: Seed of the random choice.
        folder: Output folder.

    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng([seed, round(1e6 * share)])

    def written(table: pa.Table, name: str) -> str:
        path = folder / name
        write_parquet(as_path(path), table)
        return str(path)

    pairs = []
    for number, file in enumerate(corpus.pairs):
        table = pq.read_table(file)
        count = max(2, round(share * table.num_rows))
        rows = np.sort(generator.permutation(table.num_rows)[:count])
        pairs.append(written(table.take(rows), f"pairs-{number}.parquet"))
    captions = corpus.captions
    if captions is not None:
        table = pq.read_table(captions)
        train = table.filter(
            pa.compute.and_(
                pa.compute.equal(table["split"], "train"),
                pa.compute.equal(table["language"], corpus.language),
            )
        )
        ids = np.array(pa.compute.unique(train["image_id"]).to_pylist())
        kept = generator.permutation(ids)[: max(2, round(share * len(ids)))]
        train = train.filter(pa.compute.is_in(train["image_id"], pa.array(kept)))
        captions = written(train, "captions.parquet")
    return Corpus(corpus.language, pairs, captions)
