"""Removal of invisible characters from texts, except where they carry meaning.

Copied text often contains a zero-width space or a direction mark. Tokenizers do not know these
characters, and they change the word that contains them. In some scripts such a character carries
meaning and is kept (Unicode Standard Annex 31, section 2.3, and Unicode Technical Standard 51 for
emoji).
"""

import re

import regex

# Names as in Annex 31. A context may contain characters that are dropped, too. Allowing them keeps
# the function idempotent. The limit of 16 keeps the time linear for a text of such characters.
_IGNORABLE = r"\p{Default_Ignorable_Code_Point}"
_JOINER = r"[\u200c\u200d]"
_MEANT = (
    # Persian: می‌خواهم. A zero-width non-joiner separates two letters that would otherwise join.
    r"(?<=[\p{Joining_Type=L}\p{Joining_Type=D}][\p{Joining_Type=T}\u200c\u200d]{0,16})\u200c"
    r"(?=\p{Joining_Type=T}{0,16}[\p{Joining_Type=R}\p{Joining_Type=D}])",
    # Indic scripts: a joiner after a virama selects a consonant's form. In Bengali it may precede.
    rf"(?<=\p{{ccc=9}}\p{{M}}{{0,16}}{_JOINER}{{0,16}})\u200d(?!{_JOINER})",
    rf"(?<=\p{{ccc=9}}\p{{M}}{{0,16}}{_JOINER}{{0,16}})\u200c(?=[[\p{{L}}\p{{M}}]--{_IGNORABLE}])",
    rf"(?<=[\p{{L}}--{_IGNORABLE}]\p{{M}}{{0,16}}{_JOINER}{{0,16}})\u200d(?=\p{{M}}{{0,16}}\p{{ccc=9}})",
    # Emoji: families and flags are sequences. A selector chooses text or emoji presentation.
    r"(?<=\p{Extended_Pictographic}[\p{Emoji_Modifier}\ufe0f]{0,16})\u200d(?=\p{Extended_Pictographic})",
    r"(?<=[\p{Emoji}--[0-9#*]])[\ufe0e\ufe0f]",
    r"(?<=[0-9#*])\ufe0f(?=\u20e3)",
    r"(?<=\U0001f3f4[\U000e0020-\U000e007f]{0,16})[\U000e0020-\U000e007f]",
    # Mongolian: variation selectors and the vowel separator.
    r"(?<=[\p{Script=Mongolian}&&\p{L}])[\u180b-\u180d\u180f]",
    r"(?<=[\p{Script=Mongolian}&&\p{L}][\u180b-\u180d\u180f]{0,16})\u180e(?=[\p{Script=Mongolian}&&\p{L}])",
    # Old Korean: fillers replace a missing part of a syllable.
    r"\u115f(?=[\u1160-\u11a7])",
    r"(?<=[\u1100-\u115f])\u1160",
)
_PRINTABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Invisible characters that `str.isprintable` accepts as letters and marks."""
_FILLERS = "\u115f\u1160\u3164\uffa0"
"""Invisible characters that `str.isalnum` accepts as letters."""
_UNSEEN = regex.compile(
    rf"(?V1)(?P<meant>{'|'.join(_MEANT)})"
    # `text.normalized` handles white space, and `text.fault_of` reports a NUL.
    rf"|[{_IGNORABLE}[\p{{Cc}}--[\0\s\x1c-\x1f\x85]]]"
)
_NOTHING = regex.compile(rf"(?V1)[\s\p{{Cc}}{_IGNORABLE}\ufff9-\ufffb\u2800]*")


def without_invisible(text: str) -> str:
    """Return the text without control characters and default-ignorable code points.

    Characters that carry meaning in their context are kept. White space and NUL are kept, too. A
    text of invisible characters only becomes empty. The function is idempotent.
    """
    if text.isprintable() and (text.isascii() or _PRINTABLE.search(text) is None):
        return text  # fast path for most texts
    kept: str = _UNSEEN.sub(r"\g<meant>", text)
    return kept


def shows_nothing(text: str) -> bool:
    """Return whether a text has no visible character.

    White space, invisible characters and the empty braille cell are not visible.
    """
    if text[:1].isalnum() and text[0] not in _FILLERS:
        return False  # fast path for most texts
    return _NOTHING.fullmatch(text) is not None
