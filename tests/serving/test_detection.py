"""Promises of mla_ray.serving.detection."""

import pytest

from mla_ray.serving.detection import MOST, candidates, likeliest

MANY = ["cs", "da", "de", "en", "es", "fi", "fr", "it", "nl", "no", "pl", "pt", "ro", "sv", "tr"]


@pytest.mark.parametrize(
    ("text", "served", "language"),
    [  # a script that one language alone is written in
        ("犬", ["en", "ja"], "ja"),
        ("猫", ["en", "zh"], "zh"),
        ("犬猫花鳥", ["de", "en", "ja"], "ja"),
        ("ねこ", ["en", "ja", "zh"], "ja"),
        ("고양이", ["en", "ja", "ko"], "ko"),
        ("собака", ["en", "ru", "zh"], "ru"),
        ("貓", ["en", "ru", "zh-Hant"], "zh-Hant"),
        ("ein Hund und 犬", ["de", "ja"], "de"),
        # and one in which none is
        ("고양이", ["en", "ja"], "en"),
        ("собака", ["en", "zh"], "en"),
        ("🐶", ["en", "ja"], "en"),
        ("123", ["de", "en", "ja"], "en"),
        ("", ["de", "en"], "en"),
    ],
)
def test_the_script_says_it_where_it_can(text: str, served: list[str], language: str) -> None:
    assert list(candidates(text, served)) == [language]


def test_languages_of_one_script_are_those_that_the_detector_finds_likeliest() -> None:
    found = candidates("ein Hund steht im Schnee auf dem Berg", [*MANY, "ja", "ru"])
    assert len(found) == MOST
    assert max(found, key=found.__getitem__) == "de"
    assert candidates("Hund", ["en", "nb"])["nb"] == candidates("Hund", ["en", "no"])["no"]


def test_whose_words_they_are_in_one_piece_outweighs_the_letters() -> None:
    assert likeliest({"ja": -30.0, "zh": -22.0}, {"ja": 2, "zh": 5}) == "ja"
    assert likeliest({"ja": -30.0, "zh": -22.0}, {"ja": 2, "zh": 3}) == "zh"
    assert likeliest({"ja": -30.0, "zh": -22.0}, {"zh": 50}) == "zh"  # no pack of ja to be had
    assert likeliest({"ja": -30.0, "zh": -22.0}, {}) == "en"


def test_which_of_several_packs_does_not_depend_on_their_order() -> None:
    assert candidates("taxi", MANY) == candidates("taxi", MANY[::-1])
