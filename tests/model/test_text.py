"""Promises of mla_ray.model.text."""

import sys
import unicodedata

import numpy as np
import pytest

from mla_ray.model.text import identity, normalized

EVERY = [chr(n) for n in range(sys.maxunicode + 1) if not 0xD800 <= n < 0xE000]


def test_both_are_idempotent_on_every_character_and_on_texts_of_any() -> None:
    rng = np.random.default_rng(0)
    letters = [c for c in EVERY[:0x3000] if unicodedata.category(c) != "Cn"]
    texts = ["".join(rng.choice(letters, rng.integers(1, 7))) for _ in range(20_000)]
    texts += EVERY + [text for c in EVERY[:0x3000] for text in (f"a{c}", f"{c}a", f".{c}")]
    for function in (normalized, identity):
        wrong = [text for text in texts if function(function(text)) != function(text)]
        assert not wrong


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
