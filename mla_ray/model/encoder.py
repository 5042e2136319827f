"""The language acquisition encoder (paper, section 3.1): what one language adds to a frozen native.

    text -> embedding block -> block 1 -> acquirer 1 -> ... -> block N -> acquirer N -> feature

Only the embedding block and the acquirers train; the blocks, positions, final norm and projection
are the native's. English bypasses all of it.

Shapes: B batch, L tokens, V embedding rows, W row width, D text width, H acquirer hidden size,
E joint embedding size.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mla_ray.model.towers import TextTower


class Acquirer(nn.Module):
    """A language acquirer: x + W_up(ReLU(W_down x)).

    W_up starts at zero, so a fresh one is the identity.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return x_BLD + cast(Tensor, self.up(F.relu(self.down(x_BLD))))


class EmbeddingBlock(nn.Module):
    """The non-native embedding block: one row a token, then a linear into the native's text width.

    Args:
        rows_VW: initial rows, M-BERT's word embeddings or `learned_rows`.
        tower: the native's text tower; the linear starts so that its output has the spread of the
            native's own token embeddings, and as the identity where W = D.

    """

    def __init__(self, rows_VW: Tensor, tower: TextTower) -> None:
        super().__init__()
        count, row_width = rows_VW.shape
        # Sparse: a batch touches some thousand rows of, for M-BERT, 119,547.
        self.rows = nn.Embedding(count, row_width, _weight=rows_VW.clone(), sparse=True)
        self.linear = nn.Linear(row_width, tower.width)
        gain = float(tower.token_embedding.weight.std() / rows_VW.std())
        if row_width == tower.width:
            nn.init.eye_(self.linear.weight)
            with torch.no_grad():
                self.linear.weight.mul_(gain)
        else:
            nn.init.orthogonal_(self.linear.weight, gain * max(tower.width / row_width, 1) ** 0.5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, ids_BL: Tensor) -> Tensor:
        return cast(Tensor, self.linear(self.rows(ids_BL)))


def learned_rows(count: int, tower: TextTower, generator: torch.Generator) -> Tensor:
    """Fresh rows [V, D] for a learned vocabulary, spread as the native's own token embeddings."""
    rows_VD = torch.randn(count, tower.width, generator=generator)
    return rows_VD * tower.token_embedding.weight.std().cpu()


class LanguageEncoder(nn.Module):
    """What one language adds to a native's text tower. Its parameters are all that trains.

    Languages trained together may be given the same `embedding` object; acquirers are each one's
    own. The tower is not a submodule: neither `state_dict` nor `parameters` shows it.
    """

    def __init__(self, tower: TextTower, embedding: EmbeddingBlock, hidden: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.acquirers = nn.ModuleList(Acquirer(tower.width, hidden) for _ in tower.blocks)
        self._tower = [tower]  # in a list, so that nn.Module does not look inside

    @property
    def tower(self) -> TextTower:
        return self._tower[0]

    @property
    def hidden(self) -> int:
        """H, of its acquirers."""
        return cast(Acquirer, self.acquirers[0]).down.out_features

    def forward(self, ids_BL: Tensor, length_B: Tensor) -> Tensor:
        """Features [B, E], not normalised.

        Args:
            ids_BL: embedding rows of the tokens, int64; anything after a text's end.
            length_B: tokens of each text, its end token included.

        """
        tower = self.tower
        positions_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        return tower.encode(
            self.embedding(ids_BL),
            tower.sentence_position(length_B - 1),
            positions_L >= length_B[:, None],
            lambda number, x_BLD: self.acquirers[number](x_BLD),
        )
