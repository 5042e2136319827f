"""A native and a language pack combined into the paper's language acquisition encoder."""

from collections.abc import Sequence

from torch import Tensor

from mla_ray.model.native import Native
from mla_ray.packs.pack import LanguagePack


class AcquisitionEncoder:
    """Encoder of one language: a native and a language pack for it (paper, section 3.1).

    Args:
        native: Frozen English image-text model.
        pack: Language pack that was made for `native`.

    Attributes:
        native: The native.
        pack: The language pack.

    Raises:
        PackError: The pack was made for another native.

    """

    def __init__(self, native: Native, pack: LanguagePack) -> None:
        pack.card.check(native)
        self.native, self.pack = native, pack

    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """Encode texts of the language to features `[B, E]`, float32, not L2-normalized.

        See `LanguagePack.encode_text` for arguments and errors.
        """
        return self.pack.encode_text(texts)

    def encode_ids(self, token_ids: Tensor) -> Tensor:
        """Encode token ids to features `[B, E]`, float32, not L2-normalized.

        Args:
            token_ids: Token ids `[B, L]`, int64, of the pack's tokenizer. Each row contains an end
                token. Ids after the first end token are ignored as padding.

        Raises:
            ValueError: A row has no end token, or an id is not in the tokenizer's vocabulary.

        """
        return self.pack.encode_ids(token_ids)
