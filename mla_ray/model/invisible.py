"""Characters that show nothing: they are dropped from texts, but where they mean something.

A zero-width space or a direction mark comes along when text is copied, and no tokenizer knows it:
the word it is in becomes another. Some of these characters carry meaning in some scripts, and are
kept there (Unicode Standard Annex 31, section 2.3, and Technical Standard 51 for emoji).
"""

import re

import regex

# Names as in Annex 31. Between the characters of a context others may stand that are dropped too,
# so that nothing is left to be dropped the next time; at most 16, so that a text of such characters
# alone is read in linear time.
_IGNORABLE = r"\p{Default_Ignorable_Code_Point}"
_JOINER = r"[\u200c\u200d]"
_MEANT = (
    # Persian: می‌خواهم. A zero-width non-joiner keeps two letters apart that would join.
    r"(?<=[\p{Joining_Type=L}\p{Joining_Type=D}][\p{Joining_Type=T}\u200c\u200d]{0,16})\u200c"
    r"(?=\p{Joining_Type=T}{0,16}[\p{Joining_Type=R}\p{Joining_Type=D}])",
    # Indic scripts: after a virama a joiner chooses a consonant's form; in Bengali also before.
    rf"(?<=\p{{ccc=9}}\p{{M}}{{0,16}}{_JOINER}{{0,16}})\u200d(?!{_JOINER})",
    rf"(?<=\p{{ccc=9}}\p{{M}}{{0,16}}{_JOINER}{{0,16}})\u200c(?=[[\p{{L}}\p{{M}}]--{_IGNORABLE}])",
    rf"(?<=[\p{{L}}--{_IGNORABLE}]\p{{M}}{{0,16}}{_JOINER}{{0,16}})\u200d(?=\p{{M}}{{0,16}}\p{{ccc=9}})",
    # Emoji: families and flags are sequences; a selector says whether a sign is a picture.
    r"(?<=\p{Extended_Pictographic}[\p{Emoji_Modifier}\ufe0f]{0,16})\u200d(?=\p{Extended_Pictographic})",
    r"(?<=[\p{Emoji}--[0-9#*]])[\ufe0e\ufe0f]",
    r"(?<=[0-9#*])\ufe0f(?=\u20e3)",
    r"(?<=\U0001f3f4[\U000e0020-\U000e007f]{0,16})[\U000e0020-\U000e007f]",
    # Mongolian: selectors of a letter's form, and a separator of vowels.
    r"(?<=[\p{Script=Mongolian}&&\p{L}])[\u180b-\u180d\u180f]",
    r"(?<=[\p{Script=Mongolian}&&\p{L}][\u180b-\u180d\u180f]{0,16})\u180e(?=[\p{Script=Mongolian}&&\p{L}])",
    # Old Korean: fillers stand for a missing part of a syllable.
    r"\u115f(?=[\u1160-\u11a7])",
    r"(?<=[\u1100-\u115f])\u1160",
)
_PRINTABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Those that `str.isprintable` takes for letters and marks, and"""
_FILLERS = "\u115f\u1160\u3164\uffa0"
"""`str.isalnum` for letters."""
_UNSEEN = regex.compile(
    rf"(?V1)(?P<meant>{'|'.join(_MEANT)})"
    # White space is not dropped here, NUL is a fault of the text.
    rf"|[{_IGNORABLE}[\p{{Cc}}--[\0\s\x1c-\x1f\x85]]]"
)
_NOTHING = regex.compile(rf"(?V1)[\s\p{{Cc}}{_IGNORABLE}\ufff9-\ufffb\u2800]*")


def without_invisible(text: str) -> str:
    """The text without control characters and default-ignorable code points that mean nothing.

    Idempotent. A text of which only invisible characters are left is empty.
    """
    if text.isprintable() and (text.isascii() or _PRINTABLE.search(text) is None):
        return text  # most texts, at once
    kept: str = _UNSEEN.sub(r"\g<meant>", text)
    return kept


def shows_nothing(text: str) -> bool:
    """Whether a text is of white space, invisible characters, and the empty braille cell alone."""
    if text[:1].isalnum() and text[0] not in _FILLERS:
        return False  # most texts, at once
    return _NOTHING.fullmatch(text) is not None
