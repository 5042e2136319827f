"""In which of some languages a short text is: by script, by letters, and by whose tokens it is of.

A language detector alone knows little of a word or two, and may name a language that nobody serves.
The vocabulary of a language that was learned from its texts has its words in one piece, while
another's spells them: each token more speaks against a language.
"""

from collections.abc import Iterable, Mapping
from functools import cache

import langcodes
import py3langid
import regex

from mla_ray.model.language import ENGLISH, NEAR

MOST = 8
"""Languages whose tokens are counted: the likeliest by the detector."""
NATS_A_TOKEN = 4.0
"""What a token counts against a language, beside the detector's log-likelihoods. Of 1 to 32, the
best on the names of emoji in 33 languages (docs/serving.md)."""

_SCRIPTS = {
    "Hans": ("Hani",),
    "Hant": ("Hani",),
    "Jpan": ("Hani", "Hira", "Kana"),
    "Kore": ("Hang", "Hani"),
}
"""Of ISO 15924's names for several scripts, those that characters have."""


def candidates(text: str, languages: Iterable[str]) -> dict[str, float]:
    """Languages that a text may be in, with their log-likelihoods; English if it has no letter.

    Those are the languages in whose script most of its letters are, at most `MOST` of them.
    """
    letters = {language: len(_letters_of(language).findall(text)) for language in languages}
    most = max(letters.values(), default=0)
    if most == 0:
        return {ENGLISH: 0.0}
    written = [language for language, count in letters.items() if count == most]
    if len(written) == 1:
        return {written[0]: 0.0}
    ranked: dict[str, float] = dict(py3langid.rank(text))
    unknown = min(ranked.values())
    likelihoods = {language: ranked.get(_code(language), unknown) for language in written}
    best = sorted(written, key=lambda language: (-likelihoods[language], language))[:MOST]
    return {language: likelihoods[language] for language in best}


def likeliest(likelihoods: Mapping[str, float], tokens: Mapping[str, float]) -> str:
    """The language that a text is most likely in.

    Args:
        likelihoods: of `candidates`.
        tokens: of how many the text is in each language; one that is not known counts twice.

    """
    scores = {
        language: likelihood - NATS_A_TOKEN * tokens[language]
        for language, likelihood in likelihoods.items()
        if language in tokens
    }
    return max(scores, key=scores.__getitem__, default=ENGLISH)


@cache
def _letters_of(language: str) -> "regex.Pattern[str]":
    """What finds a letter of a language's script; of any if Unicode has no such script."""
    script = langcodes.get(language).maximize().script or ""
    names = _SCRIPTS.get(script, (script,))
    try:
        return regex.compile("[" + "".join(rf"\p{{Script={name}}}" for name in names) + "]")
    except regex.error:
        return regex.compile(r"\p{L}")


@cache
def _code(language: str) -> str:
    """As the detector names it: `no` of Norwegian Bokmål, `zh` of Mandarin."""
    return langcodes.closest_supported_match(language, _codes(), max_distance=NEAR) or language


@cache
def _codes() -> list[str]:
    return sorted(code for code, _ in py3langid.rank(""))
