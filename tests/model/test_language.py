"""Promises of mla_ray.model.language: one spelling, and nothing that is no language."""

import pytest
from pydantic import BaseModel, ValidationError

from mla_ray.model.language import Language, UnknownLanguage, canonical, nearest


@pytest.mark.parametrize(
    ("typed", "written"),
    [  # RFC 5646, section 2.1.1 (case) and 4.5 (canonical form); CLDR's aliases
        ("de", "de"),
        ("DE", "de"),
        ("pt-br", "pt-BR"),
        ("pt_BR", "pt-BR"),
        ("zh-hant-tw", "zh-Hant-TW"),
        ("iw", "he"),
        ("tl", "fil"),
        ("deu", "de"),
        ("sr-latn", "sr-Latn"),
        ("ca-valencia", "ca-valencia"),
    ],
)
def test_a_tag_is_written_as_the_standard_does(typed: str, written: str) -> None:
    assert canonical(typed) == written
    assert canonical(written) == written


@pytest.mark.parametrize(
    "typed",
    [
        *(
            "",
            " ",
            "de ",
            "-",
            "de-",
            "xx-",
            "../../x",
            "de/..",
            "a.b",
            "de\n",
            "de\0",
            "ｄｅ",
            "日本",
        ),
        *("klingonisch", "und", "mul", "zxx", "mis", "x" * 300),
    ],
)
def test_what_is_no_language_is_refused(typed: str) -> None:
    with pytest.raises(UnknownLanguage, match="write a BCP-47 tag such as"):
        canonical(typed)


def test_a_model_keeps_the_canonical_tag() -> None:
    class Named(BaseModel):
        language: Language

    assert Named(language="pt-br").language == "pt-BR"
    with pytest.raises(ValidationError, match=r"language '\.\./x' is unknown"):
        Named(language="../x")


@pytest.mark.parametrize(
    ("tag", "languages", "meant"),
    [  # CLDR 48, languageMatching: Mandarin is Chinese, regions are 4 or 5 apart
        ("de", ["de", "de-AT"], "de"),
        ("de-AT", ["de", "en"], "de"),
        ("de-AT", ["de-AT", "de"], "de-AT"),
        ("de-AT", ["de-CH"], None),
        ("cmn", ["zh", "yue"], "zh"),
        ("zh-CN", ["zh"], "zh"),
        ("zh-TW", ["zh", "zh-Hant"], "zh-Hant"),
        ("zh-Hant", ["zh"], None),
        ("zh", ["zh-Hant"], None),
        ("yue", ["zh"], None),
        ("pt-BR", ["pt", "pt-PT"], "pt"),
        ("pt-BR", ["pt-PT"], None),
        ("nb", ["no", "da"], "no"),
        ("sr-Latn", ["sr"], None),
        ("gsw", ["de"], None),
        ("lb", ["de"], None),
        ("id", ["ms"], None),
        ("ca", ["es"], None),
        ("arb", ["ar"], "ar"),
        ("pes", ["fa"], "fa"),
        ("he", [], None),
    ],
)
def test_a_language_stands_for_another_only_if_its_speakers_read_it_as_theirs(
    tag: str, languages: list[str], meant: str | None
) -> None:
    assert nearest(tag, languages) == meant
    assert nearest(tag, languages[::-1]) == meant
