"""Where the rows of a learned vocabulary start: at the English tokens they are translations of.

The paper starts from M-BERT's word embeddings, in which languages lie side by side already. A
vocabulary learned from scratch has no such luck, but it has the translations themselves: IBM Model
1 (Brown et al. 1993, "The Mathematics of Statistical Machine Translation") estimates from them
which English tokens e a foreign token f goes with, and

    row(f) = sum over e of p(e | f) * E_native(e)

So the frozen tower reads something close to a word-for-word translation before the first step.

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
"""Of expectation maximisation; Model 1 is convex, and little moves after these."""
MAX_LINKS = 30_000_000
"""Token pairs looked at, some 1.5 GB; of a larger corpus a random part is aligned."""
BATCH = 4096
Index = npt.NDArray[np.int64]


def aligned_rows(
    native: Native, sources: Sequence[str], targets: Sequence[Ids], rows_VD: Tensor, seed: int
) -> Tensor:
    """Rows [V, D] float32 that start a vocabulary next to the native's own token embeddings.

    Args:
        native: whose token embeddings E are mixed.
        sources: N English texts.
        targets: embedding rows of their translations, framed by a first and a last token.
        rows_VD: what the rows of tokens stay at that occur in no translation.
        seed: chooses the part of a corpus that is too large.

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
    """The tokens that every English text begins (SigLIP's: none) and ends with."""
    ids_L = native.tokenize([""])
    ids = ids_L[0, : int(native.text.english_end(ids_L)) + 1].tolist()
    return ids[0] if len(ids) > 1 else None, ids[-1]


def _links(
    native: Native, sources: Sequence[str], targets: Sequence[Ids], order: Index
) -> tuple[Index, Index, Index]:
    """Every English token beside every token of its translation: what Model 1 counts.

    Returns of each link the English token, the foreign row, and a number of the place where the
    English token stands.
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
    """Number and native token ids, frame included, of each source in `order`."""
    for start in range(0, len(order), BATCH):
        numbers = order[start : start + BATCH]
        ids_BL = native.tokenize([sources[number] for number in numbers])
        end_B = native.text.english_end(ids_BL)
        for number, ids, end in zip(numbers, ids_BL.numpy(), end_B.tolist(), strict=True):
            yield int(number), ids[: end + 1]


def _model_1(
    code: Index, owner: Index, english_tokens: int
) -> tuple[Index, npt.NDArray[np.float64]]:
    """The distinct links and p(e | f) of each, after `ROUNDS` of expectation maximisation."""
    kinds, kind = np.unique(code, return_inverse=True)
    foreign = kinds // english_tokens
    probability = np.ones(len(kinds))
    for _ in range(ROUNDS):
        expected = probability[kind]
        expected /= np.bincount(owner, expected)[owner]  # each English token is explained once
        count = np.bincount(kind, expected)
        probability = count / np.bincount(foreign, count)[foreign]
    return kinds, probability
