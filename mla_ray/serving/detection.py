"""Language detection for short texts, by script, letters and number of tokens.

A language detector alone is unreliable for one or two words, and may return a language that the
server does not have. The vocabulary of the right language has whole words as tokens. Another
vocabulary splits the same words into more tokens, so every token counts against a language.
"""

from collections.abc import Iterable, Mapping
from functools import cache

import langcodes
import py3langid
import regex

from mla_ray.model.language import ENGLISH, NEAR

MOST = 8
"""Maximum number of candidates: those with the highest log-likelihood by the detector."""
NATS_A_TOKEN = 4.0
"""Penalty per token in nats, subtracted from the log-likelihood of the detector. It is the best
value between 1 and 32 on the names of emoji in 33 languages (docs/serving.md)."""

_SCRIPTS = {
    "Hans": ("Hani",),
    "Hant": ("Hani",),
    "Jpan": ("Hani", "Hira", "Kana"),
    "Kore": ("Hang", "Hani"),
}
"""Scripts of single characters by ISO 15924 code, for codes that stand for several scripts."""


def candidates(text: str, languages: Iterable[str]) -> dict[str, float]:
    """Select the languages that a text may be in.

    A candidate is a language whose script has the most letters of the text.

    Returns:
        Log-likelihoods by language, for at most `MOST` languages; 0 for a single candidate. Only
        English if the text has no letter in a script of `languages`.

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
    """Return the most likely language of a text, or English if no candidate has a token count.

    Args:
        likelihoods: Log-likelihoods by language, from `candidates`.
        tokens: Number of tokens of the text by language. An unknown token counts twice. Languages
            without an entry are left out.

    """
    scores = {
        language: likelihood - NATS_A_TOKEN * tokens[language]
        for language, likelihood in likelihoods.items()
        if language in tokens
    }
    return max(scores, key=scores.__getitem__, default=ENGLISH)


@cache
def _letters_of(language: str) -> "regex.Pattern[str]":
    """Return a pattern for one letter of a language's script.

    If Unicode has no such script, the pattern matches any letter.
    """
    script = langcodes.get(language).maximize().script or ""
    names = _SCRIPTS.get(script, (script,))
    try:
        return regex.compile("[" + "".join(rf"\p{{Script={name}}}" for name in names) + "]")
    except regex.error:
        return regex.compile(r"\p{L}")


@cache
def _code(language: str) -> str:
    """Return the detector's code of a language: `no` for Norwegian Bokmål, `zh` for Mandarin."""
    return langcodes.closest_supported_match(language, _codes(), max_distance=NEAR) or language


@cache
def _codes() -> list[str]:
    return sorted(code for code, _ in py3langid.rank(""))
