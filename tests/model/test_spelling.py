"""Promises of mla_ray.model.spelling: what means the same has the same tokens."""

import pytest
from tokenizers import Tokenizer

from mla_ray.model.spelling import spelling
from mla_ray.model.tokenizers import learn

TONE, VOWEL, AM = "\u0e48", "\u0e35", "\u0e33"


@pytest.mark.parametrize(
    ("language", "one", "other"),
    [
        ("de", "Straße", "Strasse"),
        ("de-AT", "GROẞE STRAßE", "grosse strasse"),
        ("fr", "Œuf", "Oeuf"),
        ("fr", "l\u2019œil", "l'oeil"),
        ("cs", "žluto\u2013zelený", "žluto-zelený"),
        ("ar", "كَلْبٌ", "كلب"),
        ("ar", "كـــلب", "كلب"),
        ("ar", "ک\u06cc", "ك\u064a"),
        ("fa", "يك", "یک"),
        ("ur", "كتاب", "کتاب"),
        ("he", "כֶּלֶב", "כלב"),
        ("tr", "İSTANBUL", "istanbul"),
        ("tr", "IŞIK", "ışık"),
        ("az-Latn", "İT", "it"),
        ("ro", "şarpe", "șarpe"),
        ("ru", "ёж", "еж"),
        ("th", "เเมว", "แมว"),
        ("th", f"ท{TONE}{VOWEL}", f"ท{VOWEL}{TONE}"),
        ("th", f"น{TONE}{TONE}{AM}", f"น{TONE}{AM}"),
        ("th", f"น\u0e4d{TONE}\u0e32", f"น{TONE}{AM}"),
        ("lo", "ເເມວ", "ແມວ"),
        ("ml", "അവന്\u200d", "അവൻ"),
        ("zh", "貓和龍", "猫和龙"),
        ("zh-Hant", "貓和龍", "猫和龙"),
        ("yue", "貓和龍", "猫和龙"),
        ("ja", "ｶﾞﾗｽ", "ガラス"),
        ("vi", "chó", "cho\u0301"),
    ],
)
def test_spellings_of_one_word_have_the_same_tokens(language: str, one: str, other: str) -> None:
    tokenizer = learn([one, other] * 2, 400, language)
    assert tokenizer.encode(one).ids == tokenizer.encode(other).ids
    saved = Tokenizer.from_str(tokenizer.to_str())
    assert saved.encode(one).ids == tokenizer.encode(one).ids


@pytest.mark.parametrize(
    ("language", "one", "other"),
    [
        ("de", "IGEL", "ıgel"),  # Turkish letters are no German ones
        ("da", "bær", "baer"),
        ("ja", "龍", "龙"),
        ("tr", "ılık", "ilik"),
        ("und", "Straße", "Strasse"),
    ],
)
def test_other_languages_letters_are_letters(language: str, one: str, other: str) -> None:
    tokenizer = learn([one, other] * 2, 400, language)
    assert tokenizer.encode(one).ids != tokenizer.encode(other).ids


@pytest.mark.parametrize("language", ["ar", "de", "fa", "fr", "he", "lo", "ro", "th", "tr", "zh"])
def test_an_orthodox_text_stays_as_it_is(language: str) -> None:
    """Words of dictionaries, which are what vocabularies are learned from."""
    texts = {
        "ar": "كلب", "de": "hund", "fa": "می\u200cخواهم", "fr": "chien", "he": "כלב",
        "lo": "ໝາ", "ro": "pisică și câine", "th": "ผู้หญิงอยู่ที่นั่น", "tr": "köpek", "zh": "狗和猫",
    }  # fmt: skip
    text = texts[language]
    for step in spelling(language):
        text = step.normalize_str(text)
    assert text == texts[language]


def test_rules_are_the_same_in_every_process() -> None:
    assert learn(["猫"] * 4, 300, "zh").to_str() == learn(["猫"] * 4, 300, "zh").to_str()
