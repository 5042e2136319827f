"""A native's own tokenizer: what open_clip makes of English texts, of which all is text."""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, Protocol, cast

from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from torch import Tensor

from mla_ray.model import tokenizers
from mla_ray.model.tokenizers import spelled_out, text_of


class Tokenize(Protocol):
    """Texts to token ids [B, context length] int64."""

    def __call__(self, texts: Sequence[str], *, context_length: int) -> Tensor: ...


def text_only(tokenizer: Callable[..., Tensor]) -> Tokenize:
    """The tokenizer, but a control token that a text spells (`<end_of_text>`) is text to it.

    open_clip's two kinds clean a text before they look for tokens, and what they clean it of may be
    what hides such a word (`&lt;end_of_text&gt;`), so it is spelled out after that. Any other
    callable is taken as it is.
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
    """Id of the token for what a native's tokenizer does not know; None if it has none."""
    unknown: int | None = getattr(getattr(tokenizer, "tokenizer", None), "unk_token_id", None)
    return unknown


def blank_ids(tokenizer: Any) -> list[int]:
    """As `tokenizers.blank_ids`, of a native's tokenizer."""
    backend = getattr(getattr(tokenizer, "tokenizer", None), "backend_tokenizer", None)
    return [] if backend is None else tokenizers.blank_ids(backend)
