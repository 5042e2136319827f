"""Preparation of a user's tables for training: blocks of token ids, a vocabulary, initial rows.

    run/run.json                                    native, data and settings; written first
    run/data/tokenizer.json, init.safetensors       vocabulary and its initial rows
    run/data/<language>/nlt-0000/, le-0000/         tables in the format of `mla_ray.data.blocks`
    run/data/<language>/held-out/                   rows that are held out of training
    run/data/prepared.json                          result of `prepare`; written last

Memory is bounded by one block of a table and by the sample from which the vocabulary is learned,
for any number of rows.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from safetensors.torch import save
from upath import UPath

from mla_ray.data.blocks import read_index, write_index
from mla_ray.data.corpus import Corpus
from mla_ray.data.keys import key_of
from mla_ray.data.parquet import write_parquet
from mla_ray.model.native import Native
from mla_ray.model.text import identity
from mla_ray.packs.pack import LanguagePack
from mla_ray.runtime.storage import (
    as_path,
    is_file,
    read_json,
    remove,
    write_bytes,
    write_json,
)
from mla_ray.training.config import AcquireConfig
from mla_ray.training.drafts import Draft, PhaseProgress, first_of_each_key, read_drafts
from mla_ray.training.encode_features import Contents
from mla_ray.training.held_out import HELD_OUT, check_held_out, hold_out, write_held_out
from mla_ray.training.run_spec import KIND, RUN, RunSpec, spec_of, stream_of
from mla_ray.training.vocabulary import Vocabulary

PREPARED = "prepared.json"
NAMED_PROBLEMS = 100


@dataclass(frozen=True)
class Prepared:
    """Result of `prepare`.

    Attributes:
        rows: Number of rows of each table, by language and table name.
        dropped: Number of rows that were dropped.
        problems: Problems of the first `NAMED_PROBLEMS` dropped rows.

    """

    rows: dict[str, dict[str, int]]
    dropped: int = 0
    problems: list[str] = field(default_factory=list)


def read_prepared(run: str | Path | UPath) -> Prepared:
    """Read the result of `prepare` in a run folder.

    Raises:
        FileNotFoundError: The run is not prepared.

    """
    return Prepared(**read_json(as_path(run) / "data" / PREPARED))


def prepare(
    native: Native,
    corpora: Sequence[Corpus],
    config: AcquireConfig,
    run: UPath,
    *,
    spec: RunSpec | None = None,
    skip_invalid: bool = False,
    progress: PhaseProgress = lambda phase, rows: None,
) -> Prepared:
    """Read, validate, tokenize and cut the tables of a run, with one vocabulary for all languages.

    A run that is already prepared is not prepared again.

    Args:
        native: Native model of the run.
        corpora: One corpus per language.
        config: Settings of both stages.
        run: Run folder, or a folder of prepared tables that several runs share.
        spec: The run's `spec_of`. Without it the table files are read once more for it.
        skip_invalid: Drop invalid rows instead of rejecting their tables.
        progress: Called with a phase and the number of rows done so far.

    Raises:
        InvalidTable: A table has invalid rows and `skip_invalid` is False, or it has no valid row.
            The error contains the problems of all tables, and nothing is written.
        ValueError: A language has no rows to hold out, or no others to train on. Or the pack to
            start from does not fit the run.

    """
    data = run / "data"
    if is_file(data / PREPARED):
        return read_prepared(run)
    check_held_out(corpora, config.held_out)
    start = _start(native, corpora)
    spec = spec or spec_of(native, corpora, config)
    with tempfile.TemporaryDirectory(prefix="mla-prepare-") as folder:
        scratch = Path(folder)
        drafts = read_drafts(corpora, scratch, skip_invalid, progress)
        held_out = {
            corpus.language: hold_out(corpus, drafts, config.held_out, scratch, skip_invalid)
            for corpus in corpora
            if config.held_out.every
        }
        remove(data)
        write_json(run / RUN, spec)
        samples = [draft.sample(config.sample) for draft in drafts]
        languages = [corpus.language for corpus in corpora]
        vocabulary = Vocabulary.of(native, languages, samples, start, config)
        for draft in drafts:
            _write_blocks(draft, data / draft.language / draft.name, vocabulary, progress)
    tokenizer = vocabulary.language_tokenizer()
    for language, rows in held_out.items():
        write_held_out(rows, tokenizer, vocabulary.used_by(language), data / language)
    pairs = [s for draft, s in zip(drafts, samples, strict=True) if draft.stage == "nlt"]
    init = vocabulary.initial_tensors(native, pairs, config)
    write_bytes(data / "init.safetensors", save(init))
    write_bytes(data / "tokenizer.json", vocabulary.tokenizer.to_str().encode())
    prepared = _prepared(languages, drafts)
    write_json(data / PREPARED, prepared.__dict__)
    return prepared


def contents(run: UPath, corpora: Sequence[Corpus]) -> list[Contents]:
    """Return what `encode_features.fill` has to encode for a prepared run, texts first."""
    needed: list[Contents] = []
    for corpus in corpora:
        data = run / "data" / corpus.language
        for name, stage, table in corpus.tables():
            folder = data / name / "contents"
            files = [str(file) for file in stream_of(corpus, stage, table).files]
            needed.append(Contents(folder, KIND[stage], read_index(folder), files))
        held_out = data / HELD_OUT / "contents"
        # Only captions have this index. The texts of held-out pairs are in their table's contents.
        if is_file(held_out / "index.json"):
            needed.append(Contents(held_out, "image", read_index(held_out), files))
    return sorted(needed, key=lambda each: each.kind == "image")


def _start(native: Native, corpora: Sequence[Corpus]) -> LanguagePack | None:
    """Return the pack that a run starts from, or None."""
    if all(corpus.start is None for corpus in corpora):
        return None
    if len(corpora) > 1:
        raise ValueError("a run that starts from a pack has one language; give each its own run")
    corpus = corpora[0]
    assert corpus.start is not None  # noqa: S101  (there is one, and it has a start)
    pack = LanguagePack.load(corpus.start, native)
    if pack.language != corpus.language:
        raise ValueError(
            f"{corpus.start} is a pack for {pack.language!r}, not for {corpus.language!r}"
        )
    return pack


def _write_blocks(
    draft: Draft, folder: UPath, vocabulary: Vocabulary, progress: PhaseProgress
) -> None:
    """Write a table's blocks, and mark their tokens as used in the vocabulary."""
    done = 0
    for prefix, block in draft.blocks:
        table = block.read()
        ids = vocabulary.encode(draft.language, table["target"].to_pylist())
        columns = {"ids": pa.array(ids, pa.list_(pa.int32())), "key": table["key"]}
        if draft.stage == "le":
            texts = (identity(text) for text in table["target"].to_pylist())
            columns["caption"] = pa.array([key_of(text) for text in texts])
        write_parquet(folder / "rows" / f"b{prefix}.parquet", pa.table(columns))
        done += len(table)
        progress(f"tokenising {draft.language}", done)
    write_index(folder, [(prefix, block.rows) for prefix, block in draft.blocks])
    counts = []
    for prefix, block in draft.contents:
        table = first_of_each_key(block.read())
        write_parquet(folder / "contents" / f"b{prefix}.parquet", table)
        counts.append((prefix, len(table)))
        block.delete()
    write_index(folder / "contents", counts)


def _prepared(languages: Sequence[str], drafts: Sequence[Draft]) -> Prepared:
    rows: dict[str, dict[str, int]] = {language: {} for language in languages}
    for draft in drafts:
        rows[draft.language][draft.name] = draft.rows
    problems = [problem for draft in drafts for problem in draft.stream.problems]
    dropped = sum(draft.stream.refused for draft in drafts)
    return Prepared(rows, dropped, [str(problem) for problem in problems[:NAMED_PROBLEMS]])
