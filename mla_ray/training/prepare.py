"""From a user's tables to what training reads: blocks of token ids, a vocabulary, initial rows.

    run/run.json                                    what the run is made of; written first
    run/data/tokenizer.json, init.safetensors       vocabulary, and where its rows start
    run/data/<language>/nlt-0000/, le-0000/         tables as `mla_ray.data.blocks` has them
    run/data/prepared.json                          what was read; written last

Tables are streamed: through a scratch file on this machine, which is cut into blocks, to the run.
Memory is bounded by a block and by the sample that the vocabulary is learned from, whatever the
number of rows.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save
from tokenizers import Tokenizer
from upath import UPath

from mla_ray.data.blocks import BLOCK, IMAGES, Spool, cut, fingerprint, write_index
from mla_ray.data.corpus import Corpus, Stage, named
from mla_ray.data.feature_store import Kind, hashes, key_of
from mla_ray.data.problems import InvalidTable, Problem
from mla_ray.data.table_images import find_image
from mla_ray.data.table_reader import Stream
from mla_ray.model.alignment import aligned_rows
from mla_ray.model.encoder import learned_rows
from mla_ray.model.native import Native
from mla_ray.model.text import identity
from mla_ray.model.tokenizers import (
    Ids,
    LanguageTokenizer,
    from_hugging_face,
    learn,
    shorten,
    token_ids,
)
from mla_ray.packs.card import read_card
from mla_ray.packs.pack import LanguagePack
from mla_ray.runtime.storage import at, read_json, remove, write_bytes, write_json
from mla_ray.training.config import AcquireConfig, HeldOut
from mla_ray.training.encode_features import Contents

KIND: dict[Stage, Kind] = {"nlt": "text", "le": "image"}


@dataclass(frozen=True)
class Prepared:
    """What `prepare` made.

    Attributes:
        rows: of every table, by language and table name.
        problems: of rows that were left out; the first of them, `dropped` counts all.

    """

    rows: dict[str, dict[str, int]]
    dropped: int = 0
    problems: list[str] = field(default_factory=list)


def read_prepared(run: str | Path | UPath) -> Prepared:
    """What was made in a run folder; FileNotFoundError if it is not prepared."""
    return Prepared(**read_json(at(run) / "data" / "prepared.json"))


Progress = Callable[[str, int], None]
"""Called with what is done and how many rows of it so far."""
SHOWN = 100


def spec_of(native: Native, corpora: Sequence[Corpus], config: AcquireConfig) -> dict[str, Any]:
    """What a run is made of; it goes on only with the same."""
    return {
        "native": native.name,
        "fingerprint": native.fingerprint,
        "config": config.model_dump(),
        "sources": sources(corpora),
        "start": {c.language: _told(c.start) for c in corpora if c.start is not None} or None,
    }


GOES_ON = "The run goes on, and what it saves has the fingerprint of today."
"""What to do about a run with a fingerprint of the rule of before: nothing."""


def as_begun(spec: dict[str, Any], native: Native, run: UPath) -> dict[str, Any]:
    """A spec as it was written, with today's fingerprint if it has the native's of before."""
    if native.goes_by(spec.get("fingerprint", ""), run, GOES_ON):
        return spec | {"fingerprint": native.fingerprint}
    return spec


def _told(pack: str | Path) -> dict[str, Any]:
    """What is told of a pack that a run starts from: which it is, and how it was made."""
    card = read_card(pack)
    return card.model_dump(include={"sha256", "stages", "acquired_on", "started_from"})


OF_TABLES = ("vocabulary", "vocab_size", "sample", "rows", "seed")


def tables_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """What of a `spec_of` prepared tables depend on; runs that differ in the rest share them."""
    config = {name: spec["config"][name] for name in OF_TABLES}
    held = spec["config"]["held_out"]
    config["held_out"] = (held["of"], held["size"]) if held["every"] else None
    made_of = {name: spec.get(name) for name in ("fingerprint", "sources", "start")}
    return made_of | {"config": config}


def tables_key(native: Native, corpora: Sequence[Corpus], config: AcquireConfig) -> str:
    """A name for a folder of prepared tables: the same for runs that may share them."""
    spec = tables_spec(spec_of(native, corpora, config))
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]


def sources(corpora: Sequence[Corpus]) -> dict[str, Any]:
    """What tells the tables of a run from other tables."""
    return {
        corpus.language: {
            name: [fingerprint(file) for file in _stream(corpus, stage, table).files]
            for name, stage, table in corpus.tables()
        }
        for corpus in corpora
    }


def prepare(
    native: Native,
    corpora: Sequence[Corpus],
    config: AcquireConfig,
    run: UPath,
    *,
    skip_invalid: bool = False,
    progress: Progress = lambda phase, rows: None,
) -> Prepared:
    """Read, check, tokenise and cut the tables of a run; one vocabulary for all its languages.

    Raises:
        InvalidTable: rows are bad (unless `skip_invalid`), or a table has none. All problems of
            all tables are told, and nothing was written.
        ValueError: rows are to be held out, and there are none or no others.

    """
    done = run / "data" / "prepared.json"
    if done.exists():
        return read_prepared(run)
    for corpus in corpora:
        if config.held_out.every and config.held_out.of == "captions" and corpus.captions is None:
            raise ValueError(
                f"held_out.of is 'captions', but {corpus.language!r} has no caption table; "
                "give one, or set held_out.of to 'pairs'"
            )
        if config.held_out.every and config.held_out.of == "captions":
            splits = corpus.splits()
            if splits["train"] and not splits["validation"]:
                raise ValueError(
                    f"held_out.of is 'captions', but {corpus.captions} has no row of split "
                    f"'validation' in {corpus.language!r}; rows found: {named(splits)}. Add some, "
                    "or set held_out.of to 'pairs'"
                )
        if config.held_out.every and config.held_out.of == "pairs" and not corpus.pairs:
            raise ValueError(
                f"held_out.of is 'pairs', but {corpus.language!r} has no translation table; "
                "give one, or set held_out.of to 'captions'"
            )
    start = _start(native, corpora)
    spec = spec_of(native, corpora, config)
    with tempfile.TemporaryDirectory(prefix="mla-prepare-") as scratch:
        drafts = _drafts(corpora, Path(scratch), skip_invalid, progress)
        held = {
            corpus.language: _hold_out(corpus, drafts, config.held_out, Path(scratch), skip_invalid)
            for corpus in corpora
            if config.held_out.every
        }
        remove(run / "data")
        write_json(run / "run.json", spec)
        samples = {id(draft): draft.sample(config.sample) for draft in drafts}
        if start:
            tokenizer, embeddings = start.tokenizer.tokenizer, None
        else:
            tokenizer, embeddings = _vocabulary(samples.values(), config)
        used: dict[str, npt.NDArray[np.bool_]] = {
            corpus.language: np.zeros(tokenizer.get_vocab_size(), bool) for corpus in corpora
        }
        for draft in drafts:
            folder = run / "data" / draft.language / draft.name
            seen = used[draft.language]
            _write(draft, folder, tokenizer, native.text.context_length, seen, progress, start)
    if start:
        ours = start.tokenizer
        used = {start.language: ours.row_of >= 0}  # all its rows stay the language's own
    else:
        ours = LanguageTokenizer.with_tokens(
            tokenizer, np.logical_or.reduce(list(used.values())), native.text.context_length
        )
    for language, apart in held.items():
        _write_held_out(apart, ours, used[language], run / "data" / language / HELD_OUT)
    pairs = [samples[id(draft)] for draft in drafts if draft.stage == "nlt"]
    if start:
        weights = start.encoder.state_dict()
        rows = weights.pop("embedding.rows.weight")
    else:
        weights, rows = {}, _initial_rows(native, ours, embeddings, pairs, config)
    tensors = {"rows": rows, "tokens": torch.from_numpy(ours.tokens)}
    tensors |= {f"start/{name}": weight for name, weight in weights.items()}
    for language, seen in used.items():
        # Which rows are the language's own; row 0 pads.
        own = np.union1d([0], np.flatnonzero(seen[ours.tokens])).astype(np.int64)
        tensors[f"own/{language}"] = torch.from_numpy(own)
    write_bytes(run / "data" / "init.safetensors", save(tensors))
    write_bytes(run / "data" / "tokenizer.json", tokenizer.to_str().encode())
    counts: dict[str, dict[str, int]] = {corpus.language: {} for corpus in corpora}
    for draft in drafts:
        counts[draft.language][draft.name] = draft.rows
    problems = [problem for draft in drafts for problem in draft.stream.problems]
    dropped = sum(draft.stream.refused for draft in drafts)
    made = Prepared(counts, dropped, [str(problem) for problem in problems[:SHOWN]])
    write_json(done, made.__dict__)
    return made


def _start(native: Native, corpora: Sequence[Corpus]) -> LanguagePack | None:
    """The pack that a run goes on from, if it does."""
    if all(corpus.start is None for corpus in corpora):
        return None
    if len(corpora) > 1:
        raise ValueError("a run that starts from a pack is of one language; give each its own run")
    corpus = corpora[0]
    assert corpus.start is not None  # noqa: S101  (there is one, and it has a start)
    pack = LanguagePack.load(corpus.start, native)
    if pack.language != corpus.language:
        raise ValueError(
            f"{corpus.start} is a pack for {pack.language!r}, not for {corpus.language!r}"
        )
    return pack


def contents(run: UPath, corpora: Sequence[Corpus]) -> list[Contents]:
    """What `encode_features.fill` has to encode for a prepared run, texts first."""
    found: list[Contents] = []
    for corpus in corpora:
        for name, stage, table in corpus.tables():
            folder = run / "data" / corpus.language / name / "contents"
            blocks = [(b["prefix"], b["rows"]) for b in read_json(folder / "index.json")["blocks"]]
            files = [str(file) for file in _stream(corpus, stage, table).files]
            found.append(Contents(folder, KIND[stage], blocks, files))
        held = run / "data" / corpus.language / HELD_OUT / "contents"
        if (held / "index.json").exists():  # captions; pairs are among those of their table
            blocks = [(b["prefix"], b["rows"]) for b in read_json(held / "index.json")["blocks"]]
            found.append(Contents(held, "image", blocks, files))
    return sorted(found, key=lambda each: each.kind == "image")


# --- reading -----------------------------------------------------------------------------------

ROWS = pa.schema(
    {"key": pa.string(), "source": pa.string(), "target": pa.string()}
    | {"file": pa.int32(), "row": pa.int64()}
)
"""`source` is what may not repeat beside the same `target`: the English text, or the image's id."""
CONTENTS = pa.schema(
    {"key": pa.string(), "content": pa.large_binary(), "uri": pa.string()}
    | {"file": pa.int32(), "row": pa.int64()}
)


@dataclass
class _Draft:
    """A table that was read and checked: its blocks, still on this machine."""

    language: str
    name: str
    stage: Stage
    stream: Stream
    blocks: list[tuple[str, Spool]]
    contents: list[tuple[str, Spool]]

    @property
    def rows(self) -> int:
        return sum(spool.rows for _, spool in self.blocks)

    def sample(self, count: int) -> pa.Table:
        """The first rows in the order of hashes: as good as a draw, and always the same."""
        parts: list[pa.Table] = []
        for _, spool in self.blocks:
            table = spool.read()
            order = np.argsort(hashes(table["key"].to_pylist()), kind="stable")[:count]
            parts.append(table.take(order))
            count -= len(order)
            if not count:
                break
        return pa.concat_tables(parts)


def _stream(corpus: Corpus, stage: Stage, table: str | Path, split: str = "train") -> Stream:
    if stage == "nlt":
        return Stream.pairs([table], corpus.language)
    return Stream.captions([table], corpus.language, split)


def _drafts(
    corpora: Sequence[Corpus], scratch: Path, skip_invalid: bool, progress: Progress
) -> list[_Draft]:
    """All tables; what is wrong with any of them is told at once."""
    drafts: list[_Draft] = []
    problems: list[Problem] = []
    refused = 0
    for corpus in corpora:
        for name, stage, table in corpus.tables():
            try:
                draft = _draft(corpus, name, stage, table, scratch, skip_invalid, progress)
                drafts.append(draft)
            except InvalidTable as invalid:
                problems += invalid.problems
                refused += invalid.count
    if problems:
        raise InvalidTable(problems, refused)
    return drafts


def _draft(
    corpus: Corpus,
    name: str,
    stage: Stage,
    table: str | Path,
    scratch: Path,
    skip_invalid: bool,
    progress: Progress,
    split: str = "train",
) -> _Draft:
    stream = _stream(corpus, stage, table, split)
    folder = scratch / corpus.language / name
    folder.mkdir(parents=True)
    rows, kept = Spool(folder / "rows", ROWS), Spool(folder / "contents", CONTENTS)
    read = _pairs if stage == "nlt" else _captions
    for piece in stream:
        keyed, content = read(piece, stream)
        rows.add(keyed)
        kept.add(content)
        progress(f"reading {corpus.language}", stream.rows)
    cut_rows = [(prefix, _without_repeats(spool, stream)) for prefix, spool in cut(rows, BLOCK)]
    blocks = [(prefix, spool) for prefix, spool in cut_rows if spool.rows]
    limit = IMAGES if stage == "le" else BLOCK
    draft = _Draft(corpus.language, name, stage, stream, blocks, list(cut(kept, limit)))
    stream.check(draft.rows, skip_invalid)
    return draft


def _pairs(piece: pa.Table, stream: Stream) -> tuple[pa.Table, pa.Table]:
    keys = pa.array([key_of(source) for source in piece["source"].to_pylist()], pa.string())
    rows = piece.append_column("key", keys).select(ROWS.names).cast(ROWS)
    content = pa.table(
        {
            "key": keys,
            "content": piece["source"].cast(pa.large_binary()),
            "uri": pa.nulls(len(keys), pa.string()),
            "file": piece["file"],
            "row": piece["row"],
        },
        CONTENTS,
    )
    return rows, content


def _captions(piece: pa.Table, stream: Stream) -> tuple[pa.Table, pa.Table]:
    """Images by their bytes; one at a path or URL is read here for its key, and again to encode."""
    inline = pa.types.is_large_binary(piece["image"].type)
    key_at = lru_cache(1024)(_key_at)  # an image has several captions, one after another
    keys: list[str | None] = []
    uris: list[str | None] = []
    for image, file, row in zip(
        *(piece[name].to_pylist() for name in ("image", "file", "row")), strict=True
    ):
        key: str | None = key_of(image) if inline else None
        uri: str | None = None
        if not inline:
            try:
                key, uri = key_at(image, stream.files[file].parent)
            except ValueError as error:
                stream.refuse(file, row, f"image {image!r} {error}")
        keys.append(key)
        uris.append(uri)
    made = pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "source": piece["image_id"],
            "target": piece["caption"],
            "content": piece["image"] if inline else pa.nulls(len(piece), pa.large_binary()),
            "uri": pa.array(uris, pa.string()),
            "file": piece["file"],
            "row": piece["row"],
        }
    ).filter(pa.array([key is not None for key in keys]))
    return made.select(ROWS.names), _once(made.select(CONTENTS.names), set())


def _key_at(uri: str, folder: UPath) -> tuple[str, str]:
    path = find_image(uri, folder)
    return key_of(path.read_bytes()), str(at(path))


def _without_repeats(spool: Spool, stream: Stream) -> Spool:
    """The block without rows that say the same; all that do are in it."""
    table = spool.read()
    first: dict[tuple[str, str], tuple[int, int]] = {}
    keep = np.ones(len(table), bool)
    columns = (table[name].to_pylist() for name in ("source", "target", "file", "row"))
    for place, (source, target, file, row) in enumerate(zip(*columns, strict=True)):
        earlier = first.setdefault((source, target), (file, row))
        if earlier != (file, row):
            keep[place] = False
            stream.refuse_repeat(file, row, earlier)
    return spool if keep.all() else _filtered(spool, table, keep)


def _filtered(spool: Spool, table: pa.Table, keep: npt.NDArray[np.bool_]) -> Spool:
    spool.delete()
    kept = Spool(spool.path, spool.schema)
    kept.add(table.filter(pa.array(keep)))
    kept.close()
    return kept


# --- held-out rows ------------------------------------------------------------------------------

HELD_OUT = "held-out"


@dataclass(frozen=True)
class _HeldOut:
    """Rows that are kept away from training, and the images that are of them alone."""

    rows: pa.Table
    contents: pa.Table | None


def _hold_out(
    corpus: Corpus,
    drafts: Sequence[_Draft],
    config: HeldOut,
    scratch: Path,
    skip_invalid: bool,
) -> _HeldOut:
    if config.of == "captions":
        assert corpus.captions is not None  # noqa: S101  (asked before)
        draft = _draft(
            corpus,
            HELD_OUT,
            "le",
            corpus.captions,
            scratch,
            skip_invalid,
            progress=lambda phase, rows: None,
            split="validation",
        )
        rows = draft.sample(config.size)
        wanted = pa.compute.unique(rows["key"].combine_chunks())
        found = [
            pa.Table.from_batches([batch]).filter(pa.compute.is_in(batch["key"], wanted))
            for _, spool in draft.contents
            for batch in spool.batches()
        ]
        return _HeldOut(rows, _once(pa.concat_tables(found), set()))
    ours = [draft for draft in drafts if draft.stage == "nlt" and draft.language == corpus.language]
    rows, key_of_text = _one_key_a_text(ours[0].sample(config.size))
    for draft in ours:  # a dictionary may hold the same text
        for place, (prefix, spool) in enumerate(draft.blocks):
            table = spool.read()
            texts = (identity(text) for text in table["source"].to_pylist())
            keep = np.array([text not in key_of_text for text in texts])
            if not keep.all():
                draft.blocks[place] = prefix, _filtered(spool, table, keep)
        draft.blocks = [(prefix, spool) for prefix, spool in draft.blocks if spool.rows]
        if not draft.blocks:
            raise ValueError(
                f"{corpus.language!r}: held_out.size {config.size} leaves a table no row to train "
                "on; make it smaller"
            )
    return _HeldOut(rows, None)


def _one_key_a_text(rows: pa.Table) -> tuple[pa.Table, dict[str, str]]:
    """Held-out pairs, those of "dog" and "Dog." with one key: neither is wrong for the other.

    And the keys by the texts' identities: no pair of such a text is trained on.
    """
    key_of_text: dict[str, str] = {}
    columns = (rows[name].to_pylist() for name in ("key", "source"))
    keys = [key_of_text.setdefault(identity(text), key) for key, text in zip(*columns, strict=True)]
    place = rows.column_names.index("key")
    return rows.set_column(place, "key", pa.array(keys, pa.string())), key_of_text


def _write_held_out(
    held: _HeldOut, ours: LanguageTokenizer, used: npt.NDArray[np.bool_], folder: UPath
) -> None:
    """Rows with embedding rows for ids, as the language's pack will have them.

    A token that nothing was learned of in this language has none.
    """
    own = LanguageTokenizer.with_tokens(ours.tokenizer, used, ours.context_length)
    texts = own(held.rows["target"].to_pylist())
    ids = pa.array([ours.row_of[own.tokens[rows]] for rows in texts], pa.list_(pa.int32()))
    _put(pa.table({"ids": ids, "key": held.rows["key"]}), folder / "rows.parquet")
    if held.contents is not None:
        _put(held.contents, folder / "contents" / "b.parquet")
        write_index(folder / "contents", [("", len(held.contents))])


# --- vocabulary --------------------------------------------------------------------------------


def _vocabulary(samples: Any, config: AcquireConfig) -> tuple[Tokenizer, torch.Tensor | None]:
    if config.vocabulary != "learned":
        return from_hugging_face(config.vocabulary)
    texts = (text for sample in samples for text in sample["target"].to_pylist())
    return learn(texts, config.vocab_size), None


def _initial_rows(
    native: Native,
    ours: LanguageTokenizer,
    embeddings: torch.Tensor | None,
    pairs: Sequence[pa.Table],
    config: AcquireConfig,
) -> torch.Tensor:
    if embeddings is not None:
        return embeddings[torch.from_numpy(ours.tokens).long()]
    generator = torch.Generator().manual_seed(config.seed)
    rows = learned_rows(len(ours.tokens), native.text, generator)
    if config.rows == "random":
        return rows
    english = list(chain.from_iterable(table["source"].to_pylist() for table in pairs))
    targets: list[Ids] = []
    for table in pairs:
        targets += ours(table["target"].to_pylist())
    return aligned_rows(native, english, targets, rows, config.seed)


# --- writing -----------------------------------------------------------------------------------


def _write(
    draft: _Draft,
    folder: UPath,
    tokenizer: Tokenizer,
    context_length: int,
    used: npt.NDArray[np.bool_],
    progress: Progress,
    start: LanguagePack | None,
) -> None:
    """The table's blocks; marks the tokens they hold in `used`.

    Tokens that a pack to start from has no row for are left out, as in its own texts.
    """
    done = 0
    for prefix, spool in draft.blocks:
        table = spool.read()
        whole = token_ids(tokenizer, table["target"].to_pylist())
        if start:
            whole = [ids[start.tokenizer.row_of[ids] >= 0] for ids in whole]
        used[np.concatenate(whole)] = True  # a query may begin with what stands past the cut here
        ids = [shorten(each, context_length) for each in whole]
        columns = {"ids": pa.array(ids, pa.list_(pa.int32())), "key": table["key"]}
        if draft.stage == "le":
            texts = (identity(text) for text in table["target"].to_pylist())
            columns["caption"] = pa.array([key_of(text) for text in texts])
        _put(pa.table(columns), folder / "rows" / f"b{prefix}.parquet")
        done += len(table)
        progress(f"tokenising {draft.language}", done)
    write_index(folder, [(prefix, spool.rows) for prefix, spool in draft.blocks])
    counts = []
    for prefix, spool in draft.contents:
        table = _once(spool.read(), set())
        _put(table, folder / "contents" / f"b{prefix}.parquet")
        counts.append((prefix, len(table)))
        spool.delete()
    write_index(folder / "contents", counts)


def _once(table: pa.Table, seen: set[str]) -> pa.Table:
    """The first row of each key that is not in `seen`, which grows."""
    keep = []
    for key in table["key"].to_pylist():
        keep.append(key not in seen)
        seen.add(key)
    return table.filter(pa.array(keep, pa.bool_()))


def _put(table: pa.Table, path: UPath) -> None:
    sink = BytesIO()
    pq.write_table(table, sink)
    write_bytes(path, sink.getvalue())
