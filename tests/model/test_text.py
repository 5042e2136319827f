"""Promises of mla_ray.model.text."""

import sys
import unicodedata

import numpy as np
import pytest

from mla_ray.model.text import normalized


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Käfer", "Ka\u0308fer"),
        ("Käfer", "  Käfer\t"),
        ("Käfer", "\u00a0Käfer\u3000"),
        ("ガ", "カ\u3099"),
        ("a b", "a b\r\n"),
    ],
)
def test_spellings_of_one_text_are_one(text: str, same: str) -> None:
    assert normalized(same) == text


def test_what_is_inside_stays() -> None:
    for text in ("a  b", "Hund.", "HUND", "ﬁ", "½", "👩\u200d🦰"):
        assert normalized(text) == text


def test_it_is_idempotent() -> None:
    rng = np.random.default_rng(0)
    characters = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]
    marks = [c for c in characters if unicodedata.combining(c)]
    spaces = [c for c in characters if c.isspace()]
    pools = (characters, marks, spaces)
    for _ in range(20_000):
        chosen = [pools[number] for number in rng.integers(3, size=5)]
        text = "".join(pool[rng.integers(len(pool))] for pool in chosen)
        once = normalized(text)
        assert normalized(once) == once
        assert unicodedata.is_normalized("NFC", once)
        assert once == once.strip()
