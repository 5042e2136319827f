"""The data of all runs: made once, by whoever starts them, and read by every run.

tables.json                            the emoji tables that it was begun with, and goes on with
tests/<set>.parquet, tests/<set>.npz   captions; the images' ids and features
bert/                                  `reproduce.bert`, of all languages' texts

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
"""Of the BERT's pretraining."""


@dataclass(frozen=True)
class AblationData:
    """Where the data of the runs is, on a disk that all of them see."""

    native: str
    store: str
    corpora: dict[str, Corpus]
    tests: str
    sets: tuple[str, ...]
    bert: str

    def test(self, name: str) -> tuple[pa.Table, Gallery]:
        """Captions of a test set, in all languages and English, and its images' features."""
        folder = Path(self.tests)
        kept = np.load(folder / f"{name}.npz")
        gallery = Gallery(kept["ids"].tolist(), kept["features"])
        return pq.read_table(folder / f"{name}.parquet"), gallery

    def digest(self) -> str:
        """Of all tables: runs of other data are other runs."""
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
    """The emoji of some languages, the stamps, and a BERT if wanted, unless they are there."""
    native, tests, learned = Native.load(native_name), folder / "tests", folder / "bert"
    sets, begun = ["emoji"], as_path(folder) / "tables.json"
    corpora: dict[str, Corpus] = {}
    emoji: list[pa.Table] = []
    texts: set[str] = set()
    for language in languages:  # the images of one at a time are in memory
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
    """What a test set is made of, beside its tables: what its features depend on is among it."""
    return {"languages": ",".join(languages), "features": f"{native.fingerprint} {DECODING}"}


def _kept(path: Path, about: Mapping[str, str]) -> bool:
    """Whether a test set of these languages, tables and features is there."""
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
    """Captions of all languages, and the features of the images that they caption."""
    columns = ["image_id", "language", "caption"]
    rows = pa.concat_tables([table.select(columns) for table in tables])
    rows = rows.group_by(columns, use_threads=False).aggregate([])  # English is in every table
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = pa.concat_tables([table.select(["image_id", "image"]) for table in tables])
    count = len(pa.compute.unique(whole["image_id"]))
    gallery = Gallery.of(native, whole, counting(report, f"{path.name} images", count))
    np.savez(path.with_suffix(".npz"), ids=np.array(gallery.ids), features=gallery.features)
    # Last: where it is, all is.
    write_parquet(as_path(path.with_suffix(".parquet")), rows.replace_schema_metadata(dict(about)))


def part_of(corpus: Corpus, share: float, seed: int, folder: Path) -> Corpus:
    """A corpus of a share of the training rows of every table; written into `folder`.

    Of captions the images are drawn, each with all that is said of it in the language.
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
