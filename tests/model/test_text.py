"""Promises of mla_ray.model.text."""

import sys
import unicodedata
from typing import Any

import numpy as np
import pytest

from mla_ray.model.text import as_texts, fault_of, identity, normalized

EVERY = [
    character
    for character in map(chr, range(sys.maxunicode + 1))
    if unicodedata.category(character) not in ("Cn", "Co", "Cs")  # unassigned, private, halves
]


def test_both_are_idempotent_on_every_character_and_on_texts_of_any() -> None:
    rng = np.random.default_rng(0)
    letters = EVERY[:0x3000]
    marks = [c for c in EVERY if unicodedata.combining(c)]
    spaces = [c for c in EVERY if c.isspace()]
    pools = (letters, marks, spaces)
    texts = list(EVERY)
    for _ in range(5000):
        chosen = [pools[number] for number in rng.integers(3, size=rng.integers(1, 7))]
        texts.append("".join(pool[rng.integers(len(pool))] for pool in chosen))
    texts += [text for c in EVERY[:0x3000] for text in (f"a{c}", f"{c}a", f".{c}")]
    for function in (normalized, identity):
        wrong = [text for text in texts if function(function(text)) != function(text)]
        assert not wrong
    for text in map(normalized, texts):
        assert unicodedata.is_normalized("NFC", text)
        assert text == text.strip()


def test_what_is_the_same_text_normalised_has_one_identity() -> None:
    for c in EVERY:
        assert identity(normalized(c)) == identity(c)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Dog", "dog."),
        ("Hund", " HUND\n"),
        ("(Hund)", "„Hund“!"),
        ("zwei  Hunde", "Zwei\tHunde"),
        ("Straße", "STRASSE"),
        ("Käfer", "Ka\u0308fer"),
        ("Ｈｕｎｄ", "hund"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("¿Qué?", "qué"),
        ("犬。", "犬"),
        ("कुत्ता।", "कुत्ता"),
    ],
)
def test_texts_that_say_the_same_have_one_identity(one: str, other: str) -> None:
    assert identity(one) == identity(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Hund", "Hunde"),
        ("a dog", "dog"),
        ("cat-dog", "catdog"),
        ("1.5", "15"),
        ("C#", "C"),
        ("5 %", "5"),
        ("?", "!"),
    ],
)
def test_texts_that_say_other_things_have_two(one: str, other: str) -> None:
    assert identity(one) != identity(other)


def test_what_is_nothing_but_punctuation_stays() -> None:
    assert identity(" ?! ") == "?!"
    assert identity("") == identity("  ") == ""


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Käfer", "Ka\u0308fer"),
        ("Käfer", "  Käfer\t"),
        ("Käfer", "\u00a0Käfer\u3000"),
        ("ガ", "カ\u3099"),
        ("a b", "a b\r\n"),
        ("a b", "\ta \u3000\u00a0 b"),
        ("a b", "a\u2028\nb"),
        ("Hund", "\ufeffHu\ufeffnd"),
    ],
)
def test_spellings_of_one_text_are_one(text: str, same: str) -> None:
    assert normalized(same) == text


def test_what_is_inside_stays() -> None:
    for text in ("a b", "Hund.", "HUND", "ﬁ", "½", "👩\u200d🦰"):
        assert normalized(text) == text


def test_a_text_that_shows_nothing_is_empty() -> None:
    import regex

    unseen = regex.compile(r"[\p{White_Space}\p{Cc}\p{Default_Ignorable_Code_Point}]")
    ignored = [c for c in EVERY if unseen.match(c)]
    assert {" ", "\0", "\xad", "\u200b", "\u2060", "\ufe0f", "\u3164", "\U000e0041"} < set(ignored)
    assert [c for c in ignored if normalized(c)] == []
    blank = [c for c in EVERY if not normalized(c) and c not in set(ignored)]
    assert blank == [
        "\u2800",
        "\ufff9",
        "\ufffa",
        "\ufffb",
    ]  # braille, annotation
    assert normalized(" ".join(ignored)) == ""
    for character in ignored:
        assert normalized(f"a{character}b")[0] == "a"


def test_what_is_no_text_is_told() -> None:
    assert fault_of("a\0b") == "holds a NUL character"
    assert "lone surrogate" in str(fault_of("a\ud800"))
    assert fault_of("Käfer 👩\u200d🦰") is None


def test_a_string_is_one_text_and_others_are_a_list_of_them() -> None:
    assert as_texts("Hund") == ["Hund"]
    assert as_texts("") == [""]
    assert as_texts([]) == []
    assert as_texts(("Hund", "Katze")) == ["Hund", "Katze"]
    assert as_texts(np.array(["Hund", "Katze"])) == ["Hund", "Katze"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("texts", "kind", "message"),
    [
        (b"Hund", TypeError, "bytes are no text; decode them"),
        (["Hund", None], TypeError, r"texts\[1\] is of type NoneType, not text"),
        (["a", "ab\ud800"], ValueError, r"texts\[1\] .*lone surrogate, U\+D800\) at position 2"),
        ("\udfff", ValueError, r"texts\[0\] .*lone surrogate, U\+DFFF\) at position 0"),
    ],
)
def test_what_cannot_be_encoded_is_named(texts: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        as_texts(texts)
