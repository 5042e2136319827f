"""How a text is written before anything else looks at it, and when two texts are the same.

A caption has one identity, whether it comes from a table, by HTTP, from Python or as a query, since
all of them call `normalized`. A tokenizer may normalise further; that is its own matter.
"""

import re
from unicodedata import category, is_normalized, normalize

SPOKEN = "#%&*@"
"""Signs among Unicode's punctuation that are read out: C# is not C."""

_BYTE_ORDER_MARK = "\ufeff"
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def normalized(text: str) -> str:
    """The text in NFC, without white space at its ends and without byte order marks. Idempotent.

    A byte order mark inside a text is what is left of a file that others were appended to.
    """
    text = text.replace(_BYTE_ORDER_MARK, "").strip()
    if not is_normalized("NFC", text):
        # NFC keeps what `strip` strips at the ends: no composition begins or ends with a space.
        text = normalize("NFC", text)
    return text


def fault_of(text: str) -> str | None:
    """Why a text is none that can be kept: half a character, or a NUL; None if it is one."""
    if "\0" in text:
        return "holds a NUL character"
    if _HALF_CHARACTER.search(text):
        return "holds half a character (a lone surrogate)"
    return None


def identity(text: str) -> str:
    """What two texts have in common that say the same: equal for "Dog", "dog." and " DOG ".

    Tokenizers fold case and compatible characters, so whoever holds texts apart (a split, held-out
    pairs, negatives) compares identities. It is NFKC and casefolded, white space is single spaces,
    and white space and punctuation at the ends are dropped, unless nothing is left: "?" is itself.
    Punctuation is Unicode's P but for `SPOKEN`. Idempotent. It is a key to compare by, never a text
    to encode or to show.
    """
    # Folding may undo a normalisation: the Greek iota subscript becomes a letter.
    folded = normalize("NFKC", normalize("NFKC", normalized(text)).casefold())
    words = " ".join(folded.split())
    start, end = 0, len(words)
    while start < end and _is_outer(words[start]):
        start += 1
    while start < end and _is_outer(words[end - 1]):
        end -= 1
    return words[start:end] or words


def _is_outer(character: str) -> bool:
    return character == " " or (category(character)[0] == "P" and character not in SPOKEN)
