"""Native tokenizers of English text, in which a control token's name is plain text."""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, Protocol, cast

from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from torch import Tensor

from mla_ray.model import tokenizers
from mla_ray.model.tokenizers import spelled_out, text_of


class Tokenize(Protocol):
    """Callable from texts to token ids `[B, context length]`, int64."""

    def __call__(self, texts: Sequence[str], *, context_length: int) -> Tensor:
        """Return token ids `[B, context_length]`, int64."""
        ...


def text_only(tokenizer: Callable[..., Tensor]) -> Tokenize:
    """Return a copy of the tokenizer that treats the name of a control token as plain text.

    A text that contains `<end_of_text>` would otherwise end there. open_clip's two tokenizers
    clean a text before they look for tokens, and cleaning may produce such a name from
    `&lt;end_of_text&gt;`. Therefore the names are split after cleaning.

    Args:
        tokenizer: Tokenizer of open_clip. Any other callable is returned unchanged.

    """
    if isinstance(tokenizer, SimpleTokenizer):
        control = [tokenizer.decoder[token] for token in tokenizer.all_special_ids]
        given = spelled_out(control)
    elif isinstance(tokenizer, HFTokenizer):
        backend = getattr(tokenizer.tokenizer, "backend_tokenizer", None)
        if backend is None:
            given = spelled_out(tokenizer.tokenizer.all_special_tokens)
        else:
            given = text_of(backend)
    else:
        return tokenizer
    ours, clean = copy(tokenizer), tokenizer.clean_fn
    ours.clean_fn = lambda text: given(clean(text))
    return cast(Tokenize, ours)


def unknown_id(tokenizer: Any) -> int | None:
    """Return the id of the unknown token of a native's tokenizer, or None if it has none."""
    unknown: int | None = getattr(getattr(tokenizer, "tokenizer", None), "unk_token_id", None)
    return unknown


def blank_ids(tokenizer: Any) -> list[int]:
    """Return the ids of tokens that are a single space, as `tokenizers.blank_ids` does."""
    backend = getattr(getattr(tokenizer, "tokenizer", None), "backend_tokenizer", None)
    return [] if backend is None else tokenizers.blank_ids(backend)
