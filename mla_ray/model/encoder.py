"""The language acquisition encoder (paper, section 3.1): the trainable modules of one language.

    text -> embedding block -> block 1 -> acquirer 1 -> ... -> block N -> acquirer N -> feature

Only the embedding block and the acquirers train. The blocks, positions, final norm and projection
belong to the frozen native. English text bypasses the added modules.

Shapes: B batch, L tokens, V embedding rows, W row width, D text width, H acquirer hidden size,
E joint embedding size.
"""

from collections.abc import Mapping, Sequence
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mla_ray.model.batches import by_tokens
from mla_ray.model.tokenizers import Ids
from mla_ray.model.towers import TextTower


class Acquirer(nn.Module):
    """Language acquirer: x + W_up(ReLU(W_down x)) (paper, section 3.1).

    W_up and its bias start at zero, so a new acquirer is the identity.

    Args:
        width: Text width D.
        hidden: Hidden size H.

    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return the adapted hidden states `[B, L, D]` of `x_BLD`."""
        return x_BLD + cast(Tensor, self.up(F.relu(self.down(x_BLD))))


class EmbeddingBlock(nn.Module):
    """Non-native embedding block: a row per token, then a linear layer to the native's text width.

    The linear layer is initialized so that its output has the standard deviation of the native's
    token embeddings. If W = D, its weight is a scaled identity, otherwise a scaled orthogonal
    matrix. The bias starts at zero.

    Args:
        rows_VW: Initial rows `[V, W]`: M-BERT's word embeddings, or rows from `learned_rows` or
            `aligned_rows`. They are copied. On the meta device nothing is initialized.
        tower: Text tower of the native.

    """

    def __init__(self, rows_VW: Tensor, tower: TextTower) -> None:
        super().__init__()
        count, row_width = rows_VW.shape
        # Sparse gradients: a batch uses about a thousand rows, and M-BERT has 119,547.
        self.rows = nn.Embedding(count, row_width, _weight=rows_VW.clone(), sparse=True)
        self.linear = nn.Linear(row_width, tower.width)
        if rows_VW.is_meta:
            return
        gain = float(tower.token_embedding.weight.std() / rows_VW.std())
        if row_width == tower.width:
            nn.init.eye_(self.linear.weight)
            with torch.no_grad():
                self.linear.weight.mul_(gain)
        else:
            nn.init.orthogonal_(self.linear.weight, gain * max(tower.width / row_width, 1) ** 0.5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Return token embeddings `[B, L, D]` of embedding rows `ids_BL`, int64.

        Rows in half precision are converted after they are looked up.
        """
        rows_BLW = self.rows(ids_BL).to(self.linear.weight.dtype)
        return cast(Tensor, self.linear(rows_BLW))


def learned_rows(count: int, tower: TextTower, generator: torch.Generator) -> Tensor:
    """Draw random rows `[V, D]` float32 for a learned vocabulary.

    The values are normal, with the standard deviation of the native's token embeddings.

    Args:
        count: Number of rows V.
        tower: Text tower of the native.
        generator: Source of randomness, on the CPU.

    """
    rows_VD = torch.randn(count, tower.width, generator=generator)
    return rows_VD * tower.token_embedding.weight.std().cpu()


class LanguageEncoder(nn.Module):
    """Trainable modules that one language adds to a native's text tower.

    The tower is not a submodule: `state_dict` and `parameters` do not include it. Languages that
    train together may share one `embedding` object. Each language has its own acquirers.

    Args:
        tower: Frozen text tower of the native.
        embedding: Embedding block of the language.
        hidden: Hidden size H of the acquirers.

    Attributes:
        activation_checkpointing: Keep only the input of each block for the backward pass, and
            compute the rest again. Features and gradients stay the same.

    """

    def __init__(self, tower: TextTower, embedding: EmbeddingBlock, hidden: int) -> None:
        super().__init__()
        self.activation_checkpointing = False
        self.embedding = embedding
        self.acquirers = nn.ModuleList(Acquirer(tower.width, hidden) for _ in tower.blocks)
        self._tower = [tower]  # a list, so that nn.Module does not register it

    @classmethod
    def of_weights(cls, tower: TextTower, weights: Mapping[str, Tensor]) -> Self:
        """Create the encoder whose `state_dict` is `weights`, which are not copied.

        Raises:
            RuntimeError: The names or shapes are not those of an encoder for the tower.

        """
        with torch.device("meta"):
            rows_VW = torch.empty_like(weights["embedding.rows.weight"], device="meta")
            hidden = len(weights["acquirers.0.down.bias"])
            encoder = cls(tower, EmbeddingBlock(rows_VW, tower), hidden)
        encoder.load_state_dict(weights, assign=True)
        return encoder

    @property
    def tower(self) -> TextTower:
        """Frozen text tower of the native."""
        return self._tower[0]

    @property
    def hidden(self) -> int:
        """Hidden size H of the acquirers."""
        return cast(Acquirer, self.acquirers[0]).down.out_features

    def forward(self, ids_BL: Tensor, length_B: Tensor) -> Tensor:
        """Encode a batch of texts to features `[B, E]`, not L2-normalized.

        Args:
            ids_BL: Embedding rows of the tokens `[B, L]`, int64, padded with row 0.
            length_B: Number of tokens of each text `[B]`, int64, including the end token.

        """
        tower = self.tower
        positions_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        return tower.encode(
            self.embedding(ids_BL),
            tower.sentence_position(length_B - 1),
            positions_L >= length_B[:, None],
            lambda number, x_BLD: self.acquirers[number](x_BLD),
            self.activation_checkpointing,
        )

    def encode_all(self, texts: Sequence[Ids]) -> Tensor:
        """Encode any number of texts to features `[N, E]` float32, not L2-normalized.

        Texts of similar length share a batch, so memory for activations does not grow with N.

        Args:
            texts: Embedding rows of each text, int32.

        """
        tower, device = self.tower, self.embedding.linear.weight.device
        features_NE = torch.empty(len(texts), tower.dim, device=device)
        lengths = [tower.padded_length(len(text)) for text in texts]
        for rows in by_tokens(lengths, device.type):
            ids_BL, length_B = tower.pad([texts[row] for row in rows])
            features_NE[rows] = self(ids_BL.to(device), length_B.to(device)).float()
        return features_NE
