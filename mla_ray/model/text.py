"""Normalization and identity of texts.

All sources of a caption (tables, HTTP, Python, queries) call `normalized`, so a caption has the
same identity everywhere. A tokenizer may normalize further.
"""

import re
from collections.abc import Sequence
from unicodedata import category, is_normalized, normalize

from mla_ray.model.invisible import shows_nothing, without_invisible

SPOKEN = "#%&*@"
"""Characters of Unicode's punctuation that are read aloud: "C#" differs from "C"."""

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def normalized(text: str) -> str:
    """Return the text in NFC, with single spaces between words and without invisible characters.

    White space at the ends is removed. Invisible characters that carry meaning are kept (see
    `mla_ray.model.invisible`). A text without visible characters, such as a single soft hyphen,
    becomes empty. The function is idempotent.
    """
    text = without_invisible(text)
    if not is_normalized("NFC", text):
        text = normalize("NFC", text)
    if not text.isprintable() or "  " in text or text != text.strip(" "):
        text = " ".join(text.split())
    return "" if shows_nothing(text) else text


def fault_of(text: str) -> str | None:
    """Return why a text cannot be stored (a NUL or a lone surrogate), or None if it can."""
    if "\0" in text:
        return "holds a NUL character"
    return half_character(text)


def half_character(text: str) -> str | None:
    """Return a message about the first lone surrogate and its position from 0, or None."""
    if half := _HALF_CHARACTER.search(text):
        code_point, position = f"U+{ord(half[0]):04X}", half.start()
        return f"holds half a character (a lone surrogate, {code_point}) at position {position}"
    return None


def as_texts(texts: str | Sequence[str]) -> list[str]:
    """Return the texts as a list. A single string is one text.

    Raises:
        TypeError: The argument is bytes, or an item is not a `str`.
        ValueError: A text contains a lone surrogate, which no tokenizer can read. The message names
            the text and the position, both counted from 0.

    """
    if isinstance(texts, str):
        texts = [texts]
    elif isinstance(texts, bytes):
        raise TypeError("bytes are no text; decode them")
    listed = list(texts)
    for number, text in enumerate(listed):
        if not isinstance(text, str):
            raise TypeError(f"texts[{number}] is of type {type(text).__name__}, not text")
        if fault := half_character(text):
            raise ValueError(f"texts[{number}] {fault}")
    return listed


def identity(text: str) -> str:
    """Return a key that is equal for texts that differ only in spelling details.

    "Dog", "dog." and " DOG " have the same key. Code that separates texts (splits, held-out pairs,
    negatives) compares identities, because tokenizers fold case and compatible characters.

    The key is NFKC, casefolded, with single spaces, and without white space and punctuation at the
    ends. If nothing visible would be left, punctuation stays: the key of "?" is "?". Punctuation is
    Unicode category P except `SPOKEN`. The function is idempotent. Use the key only for comparison,
    not for encoding or display.
    """
    # Normalize again: casefolding turns the Greek iota subscript into a letter.
    folded = normalize("NFKC", normalize("NFKC", normalized(text)).casefold())
    words = " ".join(folded.split())
    start, end = 0, len(words)
    while start < end and _is_outer(words[start]):
        start += 1
    while start < end and _is_outer(words[end - 1]):
        end -= 1
    inner = words[start:end]
    return words if shows_nothing(inner) else inner


def _is_outer(character: str) -> bool:
    return character == " " or (category(character)[0] == "P" and character not in SPOKEN)
