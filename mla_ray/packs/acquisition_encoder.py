"""A native and a language pack as one: the paper's language acquisition encoder."""

from collections.abc import Sequence

from torch import Tensor

from mla_ray.model.native import Native
from mla_ray.packs.pack import LanguagePack


class AcquisitionEncoder:
    """A native and a language pack made for it: texts of the language to the native's space.

    Raises:
        PackError: the pack was made for another native.

    """

    def __init__(self, native: Native, pack: LanguagePack) -> None:
        pack.card.check(native)
        self.native, self.pack = native, pack

    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """Features [B, E] float32, not normalised; `texts` as in `LanguagePack.encode_text`."""
        return self.pack.encode_text(texts)

    def encode_ids(self, token_ids: Tensor) -> Tensor:
        """Features [B, E] float32, not normalised, of texts that are tokens already.

        Args:
            token_ids: [B, L] int64 of the pack's tokenizer. Each row holds an end token; what
                stands after its first is padding.

        """
        return self.pack.encode_ids(token_ids)
