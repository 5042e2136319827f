"""How a text is written before anything else looks at it, and when two texts are the same.

A caption has one identity, whether it comes from a table, by HTTP, from Python or as a query, since
all of them call `normalized`. A tokenizer may normalise further; that is its own matter.
"""

import re
from collections.abc import Sequence
from unicodedata import category, is_normalized, normalize

from mla_ray.model.invisible import shows_nothing, without_invisible

SPOKEN = "#%&*@"
"""Signs among Unicode's punctuation that are read out: C# is not C."""

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def normalized(text: str) -> str:
    """The text in NFC, its words one space apart, without what cannot be seen. Idempotent.

    There is no white space at its ends. Invisible characters are dropped (`invisible`), but where
    they mean something. A text that shows nothing, such as a soft hyphen alone, is empty.
    """
    text = without_invisible(text)
    if not is_normalized("NFC", text):
        text = normalize("NFC", text)
    if not text.isprintable() or "  " in text or text != text.strip(" "):
        text = " ".join(text.split())
    return "" if shows_nothing(text) else text


def fault_of(text: str) -> str | None:
    """Why a text is none that can be kept: half a character, or a NUL; None if it is one."""
    if "\0" in text:
        return "holds a NUL character"
    return half_character(text)


def half_character(text: str) -> str | None:
    """Says that a text holds half a character, and where, counted from 0; None if it does not."""
    if half := _HALF_CHARACTER.search(text):
        code_point, position = f"U+{ord(half[0]):04X}", half.start()
        return f"holds half a character (a lone surrogate, {code_point}) at position {position}"
    return None


def as_texts(texts: str | Sequence[str]) -> list[str]:
    """What all that encodes texts is given, as a list: one string is one text, not its letters.

    Raises:
        TypeError: something is no text.
        ValueError: a text holds half a character, which no tokenizer can read; says which text, and
            where in it, counted from 0 as Python does.

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
    """What two texts have in common that say the same: equal for "Dog", "dog." and " DOG ".

    Tokenizers fold case and compatible characters, so whoever holds texts apart (a split, held-out
    pairs, negatives) compares identities. It is NFKC and casefolded, white space is single spaces,
    and white space and punctuation at the ends are dropped, unless nothing is left to see: "?" is
    itself. Punctuation is Unicode's P but for `SPOKEN`. Idempotent. It is a key to compare by,
    never a text to encode or to show.
    """
    # Folding may undo a normalisation: the Greek iota subscript becomes a letter.
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
