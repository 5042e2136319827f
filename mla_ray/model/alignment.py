"""Initial embedding rows of a learned vocabulary, estimated from translations.

The paper starts from M-BERT's word embeddings, which are aligned across languages already. A
vocabulary learned from scratch is not aligned, but its translations are available. IBM Model 1
(Brown et al. 1993, "The Mathematics of Statistical Machine Translation") estimates from them the
probability p(e | f) that a foreign token f corresponds to an English token e:

    row(f) = sum over e of p(e | f) * E_native(e)

As a result, the frozen tower reads an approximate word-for-word translation before the first
training step.

Shapes: N pairs, V embedding rows, D text width.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mla_ray.model.native import Native
from mla_ray.model.tokenizers import Ids

ROUNDS = 5
"""Rounds of expectation maximization. Model 1 is convex, and later rounds change little."""
MAX_LINKS = 30_000_000
"""Maximum number of token pairs, about 1.5 GB. A random part of a larger corpus is aligned."""
BATCH = 4096
"""English texts tokenized in one call."""
Index = npt.NDArray[np.int64]
"""Array of int64."""


def aligned_rows(
    native: Native, sources: Sequence[str], targets: Sequence[Ids], rows_VD: Tensor, seed: int
) -> Tensor:
    """Compute initial rows from the native's token embeddings and the translations.

    Args:
        native: Native whose token embeddings are mixed.
        sources: N English texts.
        targets: Embedding rows of the N translations, int32. The first and the last row of each
            are those of frame tokens.
        rows_VD: Fallback rows `[V, D]` for tokens that occur in no translation. Not modified.
        seed: Seed that selects the part of a corpus that exceeds `MAX_LINKS`.

    Returns:
        Rows `[V, D]` float32. The frame tokens get the embeddings of the native's frame tokens.
        If no pair has tokens on both sides, the rows are a copy of `rows_VD`.

    """
    embedding = native.text.token_embedding.weight.detach().float().cpu()
    rows_VD = rows_VD.clone()
    order = np.random.default_rng(seed).permutation(len(sources))
    english, foreign, owner = _links(native, sources, targets, order)
    if not len(foreign):
        return rows_VD
    code = foreign * len(embedding) + english
    kinds, probability = _model_1(code, owner, len(embedding))
    indices = torch.from_numpy(np.stack(np.divmod(kinds, len(embedding))))
    shape = (len(rows_VD), len(embedding))
    values = torch.from_numpy(probability).float()
    mixture = torch.sparse_coo_tensor(indices, values, shape, check_invariants=False)
    seen = torch.from_numpy(np.unique(foreign))
    rows_VD[seen] = (mixture @ embedding)[seen]
    begin, end = _frame(native)
    if begin is not None:
        rows_VD[targets[0][0]] = embedding[begin]
    rows_VD[targets[0][-1]] = embedding[end]
    return rows_VD


def _frame(native: Native) -> tuple[int | None, int]:
    """Return the ids of the tokens that start and end every English text.

    The first is None for a tokenizer without a start token, such as SigLIP's.
    """
    ids_L = native.tokenize([""])
    ids = ids_L[0, : int(native.text.english_end(ids_L)) + 1].tolist()
    return ids[0] if len(ids) > 1 else None, ids[-1]


def _links(
    native: Native, sources: Sequence[str], targets: Sequence[Ids], order: Index
) -> tuple[Index, Index, Index]:
    """Pair every English token with every token of its translation, as Model 1 counts them.

    Returns:
        Three int64 arrays with one entry per pair: the English token id, the foreign row, and the
        number of the English token's occurrence in the corpus.

    """
    english, foreign, owner = [], [], []
    occurrences = links = 0
    begin, _ = _frame(native)
    for number, ids in _english(native, sources, order):
        inner = ids[0 if begin is None else 1 : -1]
        other = targets[number][1:-1].astype(np.int64)
        english.append(np.repeat(inner, len(other)))
        foreign.append(np.tile(other, len(inner)))
        owner.append(np.repeat(np.arange(len(inner)) + occurrences, len(other)))
        occurrences += len(inner)
        links += len(inner) * len(other)
        if links > MAX_LINKS:
            break
    none = np.empty(0, np.int64)
    return (
        np.concatenate(english or [none]),
        np.concatenate(foreign or [none]),
        np.concatenate(owner or [none]),
    )


def _english(native: Native, sources: Sequence[str], order: Index) -> Iterator[tuple[int, Index]]:
    """Yield the number and the native token ids, frame included, of each source in `order`."""
    known: dict[str, Index] = {}  # a dictionary lists a word with each of its translations
    for start in range(0, len(order), BATCH):
        numbers = order[start : start + BATCH].tolist()
        texts = list({sources[number] for number in numbers} - known.keys())
        ids_BL = native.tokenize(texts)
        end_B = native.text.english_end(ids_BL).tolist() if texts else []
        for text, ids, end in zip(texts, ids_BL.numpy(), end_B, strict=True):
            known[text] = ids[: end + 1].copy()
        for number in numbers:
            yield number, known[sources[number]]


def _model_1(
    code: Index, owner: Index, english_tokens: int
) -> tuple[Index, npt.NDArray[np.float64]]:
    """Estimate p(e | f) with `ROUNDS` of expectation maximization.

    Args:
        code: Pairs, each encoded as `foreign * english_tokens + english`.
        owner: Number of each pair's English occurrence.
        english_tokens: Size of the native's vocabulary.

    Returns:
        The distinct pairs in the same encoding, and the float64 probability of each.

    """
    kinds, kind = np.unique(code, return_inverse=True)
    foreign = kinds // english_tokens
    probability = np.ones(len(kinds))
    for _ in range(ROUNDS):
        expected = probability[kind]
        # The weights of each English occurrence sum to one.
        expected /= np.bincount(owner, expected)[owner]
        count = np.bincount(kind, expected)
        probability = count / np.bincount(foreign, count)[foreign]
    return kinds, probability
