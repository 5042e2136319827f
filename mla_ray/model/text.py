"""How a text is written before anything else looks at it: the same on every road.

A caption has one identity, whether it comes from a table, by HTTP, from Python or as a query, since
all of them call `normalized`. A tokenizer may normalise further; that is its own matter.
"""

import re
from unicodedata import is_normalized, normalize

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
