"""Held-out rows: their selection from a run's tables, and AR on them.

Shapes: E joint embedding size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from upath import UPath

from mla_ray.data.blocks import write_index
from mla_ray.data.corpus import Corpus, named
from mla_ray.data.feature_store import FeatureStore
from mla_ray.data.parquet import read_parquet, write_parquet
from mla_ray.evaluation.recall import rank
from mla_ray.model.encoder import LanguageEncoder
from mla_ray.model.text import identity
from mla_ray.model.tokenizers import LanguageTokenizer
from mla_ray.training.config import HeldOut
from mla_ray.training.drafts import Draft, first_of_each_key, read_draft, replaced

HELD_OUT = "held-out"


@dataclass(frozen=True)
class HeldOutRows:
    """Rows that are held out of training.

    Attributes:
        rows: Rows in the schema `drafts.ROWS`.
        contents: Images of held-out captions, in the schema `drafts.CONTENTS`. None for pairs.

    """

    rows: pa.Table
    contents: pa.Table | None


def check_held_out(corpora: Sequence[Corpus], config: HeldOut) -> None:
    """Check that each language has a table from which rows can be held out.

    Raises:
        ValueError: A language lacks the table, or the table lacks the split `validation`.

    """
    if not config.every:
        return
    for corpus in corpora:
        if config.of == "pairs" and not corpus.pairs:
            raise ValueError(
                f"held_out.of is 'pairs', but {corpus.language!r} has no translation table; "
                "give one, or set held_out.of to 'captions'"
            )
        if config.of != "captions":
            continue
        if corpus.captions is None:
            raise ValueError(
                f"held_out.of is 'captions', but {corpus.language!r} has no caption table; "
                "give one, or set held_out.of to 'pairs'"
            )
        splits = corpus.splits()
        if splits["train"] and not splits["validation"]:
            raise ValueError(
                f"held_out.of is 'captions', but {corpus.captions} has no row of split "
                f"'validation' in {corpus.language!r}; rows found: {named(splits)}. Add some, "
                "or set held_out.of to 'pairs'"
            )


def hold_out(
    corpus: Corpus, drafts: Sequence[Draft], config: HeldOut, scratch: Path, skip_invalid: bool
) -> HeldOutRows:
    """Choose the held-out rows of a language.

    Captions come from the table's split `validation`. Pairs come from the first translation table.
    All pairs with the same English texts are then removed from the language's drafts.

    Args:
        corpus: Corpus of the language.
        drafts: Drafts of all languages. The language's translation tables are changed in place.
        config: Settings of the held-out rows.
        scratch: Local folder for temporary files.
        skip_invalid: Drop invalid rows instead of rejecting the table.

    Raises:
        InvalidTable: The split has invalid rows and `skip_invalid` is False, or no valid row.
        ValueError: A translation table would have no row left.

    """
    if config.of == "captions":
        return _validation_captions(corpus, config, scratch, skip_invalid)
    ours = [draft for draft in drafts if draft.stage == "nlt" and draft.language == corpus.language]
    rows, key_of_text = _one_key_a_text(ours[0].sample(config.size))
    for draft in ours:  # another table may contain the same text
        for place, (prefix, block) in enumerate(draft.blocks):
            table = block.read()
            texts = (identity(text) for text in table["source"].to_pylist())
            keep = np.array([text not in key_of_text for text in texts])
            if not keep.all():
                kept = table.filter(pa.array(keep))
                draft.blocks[place] = prefix, replaced(block, kept)
        draft.blocks = [(prefix, block) for prefix, block in draft.blocks if block.rows]
        if not draft.blocks:
            raise ValueError(
                f"{corpus.language!r}: held_out.size {config.size} leaves a table no row to train "
                "on; make it smaller"
            )
    return HeldOutRows(rows, None)


def _validation_captions(
    corpus: Corpus, config: HeldOut, scratch: Path, skip_invalid: bool
) -> HeldOutRows:
    assert corpus.captions is not None  # noqa: S101  (`check_held_out`)
    draft = read_draft(
        corpus, HELD_OUT, "le", corpus.captions, scratch, skip_invalid, split="validation"
    )
    rows = draft.sample(config.size)
    wanted = pa.compute.unique(rows["key"].combine_chunks())
    images = [
        pa.Table.from_batches([batch]).filter(pa.compute.is_in(batch["key"], wanted))
        for _, block in draft.contents
        for batch in block.batches()
    ]
    return HeldOutRows(rows, first_of_each_key(pa.concat_tables(images)))


def _one_key_a_text(rows: pa.Table) -> tuple[pa.Table, dict[str, str]]:
    """Give held-out pairs of the same English text the same key, so both count as correct.

    "dog" and "Dog." are the same text (`identity`).

    Returns:
        The pairs, and the key of each text by its identity. No pair of such a text is trained on.

    """
    key_of_text: dict[str, str] = {}
    columns = (rows[name].to_pylist() for name in ("key", "source"))
    keys = [key_of_text.setdefault(identity(text), key) for key, text in zip(*columns, strict=True)]
    place = rows.column_names.index("key")
    return rows.set_column(place, "key", pa.array(keys, pa.string())), key_of_text


def write_held_out(
    held_out: HeldOutRows,
    tokenizer: LanguageTokenizer,
    used: npt.NDArray[np.bool_],
    folder: UPath,
) -> None:
    """Write held-out rows, with the embedding rows of their tokens as ids.

    As in the language's pack, tokens that its tables do not contain are dropped.

    Args:
        held_out: Held-out rows of one language.
        tokenizer: Tokenizer of the run.
        used: Mask of the tokens that the language's tables contain.
        folder: Folder of the language.

    """
    own = LanguageTokenizer.with_tokens(tokenizer.tokenizer, used, tokenizer.context_length)
    texts = own(held_out.rows["target"].to_pylist())
    ids = pa.array([tokenizer.row_of[own.tokens[rows]] for rows in texts], pa.list_(pa.int32()))
    rows = pa.table({"ids": ids, "key": held_out.rows["key"]})
    write_parquet(folder / HELD_OUT / "rows.parquet", rows)
    if held_out.contents is not None:
        contents = folder / HELD_OUT / "contents"
        write_parquet(contents / "b.parquet", held_out.contents)
        write_index(contents, [("", len(held_out.contents))])


@torch.inference_mode()
def held_out_ar(encoder: LanguageEncoder, folder: UPath, store: FeatureStore) -> float:
    """Return AR in percent of a language's held-out texts against their frozen features.

    Args:
        encoder: Encoder of the language.
        folder: Folder of the language, as in `write_held_out`.
        store: Feature store of the English texts or the images.

    Raises:
        ValueError: No held-out row has a feature.

    """
    table = read_parquet(folder / HELD_OUT / "rows.parquet")
    keys, of = np.unique(np.array(table["key"].to_pylist()), return_inverse=True)
    frozen = store.read(keys.tolist())
    sound = np.flatnonzero(np.isfinite(frozen[of, 0]))  # a broken image has no feature
    if not len(sound):
        raise ValueError(f"{folder.name!r}: no held-out row has a feature")
    column = table["ids"].to_pylist()
    ids = [np.array(column[row], np.int32) for row in sound]
    kept, of = np.unique(of[sound], return_inverse=True)
    text_NE = encoder.encode_all(ids).cpu().numpy()
    return rank(text_NE, frozen[kept], of.astype(np.int64)).recall().ar
