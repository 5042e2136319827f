"""Promises of mla_ray.model.invisible, by way of `normalized`, through which every road goes."""

import sys

import numpy as np
import pytest

from mla_ray.model.invisible import shows_nothing, without_invisible
from mla_ray.model.text import normalized

# As lists of code points, since nobody sees them in an editor.
UNSEEN = [
    0x00AD, 0x034F, 0x061C, 0x200B, 0x200E, 0x200F, 0x202A, 0x202E, 0x2060, 0x2062, 0x2066, 0x2069,
    0x3164, 0xFE00, 0xFE0F, 0xFEFF, 0xFFA0, 0x1D173, 0xE0001, 0xE0041, 0xE0100, 0x0008, 0x007F,
]  # fmt: skip
ZWNJ, ZWJ, PICTURE = "\u200c", "\u200d", "\ufe0f"


@pytest.mark.parametrize("unseen", map(chr, UNSEEN), ids=[f"U+{n:04X}" for n in UNSEEN])
@pytest.mark.parametrize("word", ["Hund", "แมว", "犬猫", "собака", "كلب", "कुत्ता", "고양이"])
def test_nothing_is_left_of_an_invisible_character(word: str, unseen: str) -> None:
    for text in (f"{unseen}{word}", f"{word}{unseen}", f"{word[:1]}{unseen}{word[1:]}"):
        assert normalized(text) == normalized(word)
    assert normalized(unseen) == ""


@pytest.mark.parametrize("word", ["Hund", "แมว", "犬猫", "собака"])
@pytest.mark.parametrize("joiner", [ZWNJ, ZWJ])
def test_a_joiner_means_nothing_where_nothing_joins(word: str, joiner: str) -> None:
    assert normalized(f"{word[:1]}{joiner}{word[1:]}{joiner}") == word


@pytest.mark.parametrize(
    "text",
    [
        f"می{ZWNJ}خواهم",  # Persian: two letters that do not join
        f"ശ{chr(0x0D4D)}{ZWJ}",  # Malayalam: a consonant without its vowel, as it was once written
        f"ශ{chr(0x0DCA)}{ZWJ}රී",  # Sinhala: a conjunct
        f"र{chr(0x094D)}{ZWJ}",  # Marathi: the eyelash r
        f"क{chr(0x094D)}{ZWNJ}ष",  # Hindi: no conjunct
        f"র{ZWJ}{chr(0x09CD)}যাব",  # Bengali: the joiner is before the virama
        f"👩{ZWJ}👩{ZWJ}👧",
        f"👩🏽{ZWJ}🚀",
        f"❤{PICTURE}{ZWJ}🔥",
        f"❤{PICTURE}",
        f"1{PICTURE}{chr(0x20E3)}",
        "🏴" + "".join(chr(0xE0000 + ord(c)) for c in "gbsct") + chr(0xE007F),
        f"ᠮᠣ{chr(0x180B)}ᠩ",
        f"{chr(0x1100)}{chr(0x1160)}",
    ],
)
def test_what_means_something_stays(text: str) -> None:
    assert normalized(text) == text


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (f"می{ZWNJ}{ZWNJ}خواهم", f"می{ZWNJ}خواهم"),  # typed twice
        (f"کار{ZWNJ}ها", "کارها"),  # r joins nothing after it: both look the same
        (f"خانه{ZWNJ} بزرگ", "خانه بزرگ"),
        (f"1{PICTURE}", "1"),
        (f"🐶{ZWJ}", "🐶"),
        ("a\x0bb\x85c", "a b c"),
    ],
)
def test_the_rest_of_them_goes(typed: str, read: str) -> None:
    assert normalized(typed) == read


def test_normalising_again_changes_nothing() -> None:
    pool = (
        "ab 1#میخواهمهكषर्മ്ন্রযශ්රී👩🏽🚀❤🏴犬แมว่ᠠᠡ"
        + "\u094d\u09cd\u0dca\u093c\u0323\u0301\u0345\u034f\u00ad\u180b\u180e\u115f\u1160\u1100"
        + "\u200b\ufe0e\u20e3\u2060\x08\n\0\U000e0067\U000e007f"
        + 3 * (ZWNJ + ZWJ + PICTURE)
    )
    generator = np.random.default_rng(0)
    for length in generator.integers(1, 9, size=20_000):
        text = "".join(pool[n] for n in generator.integers(len(pool), size=length))
        once = normalized(text)
        assert normalized(once) == once, ascii(text)


def test_all_of_unicode_that_shows_nothing_is_nothing() -> None:
    """Against the ranges of Unicode's DerivedCoreProperties, Default_Ignorable_Code_Point."""
    ranges = [
        (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5),
        (0x180B, 0x180F), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164),
        (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8),
        (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
    ]  # fmt: skip
    ignorable = {chr(n) for first, last in ranges for n in range(first, last + 1)}
    for character in ignorable:
        assert without_invisible(character) == ""
        assert shows_nothing(character)
    every = map(chr, range(sys.maxunicode + 1))
    others = [c for c in every if not (c in ignorable or c < " " or "\x7f" <= c < "\xa0")]
    for start in range(0, len(others), 100):  # some at a time: each alone takes seconds
        text = "".join(others[start : start + 100])
        assert without_invisible(text) == text
