"""How a text is written before anything else looks at it: the same on every road.

A caption has one identity, whether it comes from a table, by HTTP, from Python or as a query, since
all of them call `normalized`. A tokenizer may normalise further; that is its own matter.
"""

from unicodedata import is_normalized, normalize


def normalized(text: str) -> str:
    """The text in NFC, without white space at its ends. Idempotent."""
    text = text.strip()
    if not is_normalized("NFC", text):
        # NFC keeps what `strip` strips at the ends: no composition begins or ends with a space.
        text = normalize("NFC", text)
    return text
