"""Verdicts on those of the paper's claims that the tables can test."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mla_ray.reproduce import ablations as ab
from mla_ray.reproduce.figures import Figure, Results, figure

Verdict = Literal["held", "did not hold", "cannot be told"]


@dataclass(frozen=True)
class Claim:
    """A claim with its verdict and the measured difference as text."""

    verdict: Verdict
    text: str


def claims(results: Results) -> list[Claim]:
    """Return the claims for which all runs are done."""
    return [*_compared(results), *_english(results), *_turn(results)]


def verdict(difference: Figure) -> Verdict:
    """Return the verdict on the claim that a difference is above zero."""
    if difference.low > 0:
        return "held"
    return "did not hold" if difference.high < 0 else "cannot be told"


def verdict_of_loss(difference: Figure) -> Verdict:
    """Return the verdict on the claim that a difference is below zero."""
    return verdict(Figure(-difference.mean, -difference.high, -difference.low))


def _compared(results: Results) -> Iterator[Claim]:
    compared = (
        ("Language Exposure improves on Native Language Transfer alone", ab.FULL, ab.NLT_ALONE),
        ("both stages are better than Language Exposure alone", ab.FULL, ab.LE_ALONE),
        ("language acquirers improve on a trained embedding alone", ab.FULL, ab.NO_ACQUIRERS),
        (
            "embeddings of a multilingual BERT are better than random rows",
            ab.M_BERT_LIKE,
            ab.AT_RANDOM,
        ),
        (
            "in these runs, rows aligned with the native's own embeddings are better than those of "
            "a small multilingual BERT",
            ab.FULL,
            ab.M_BERT_LIKE,
        ),
        ("larger acquirers are better (H = 256 against H = 16)", ab.HIDDEN[-1], ab.HIDDEN[0]),
        ("more data is better (all of it against 30 %)", ab.FULL, ab.SHARES[-1]),
        ("training languages together is better than one by one", ab.TOGETHER, ab.FULL),
    )
    for text, better, worse in compared:
        if difference := results.difference(better, worse):
            yield Claim(verdict(difference), f"{text}: {difference.signed}")


def _english(results: Results) -> Iterator[Claim]:
    languages = results.complete([ab.TOWER, ab.FULL])
    before = results.english_shares()
    each = results.over(ab.TOWER, languages, of="en")
    against = results.difference(ab.FULL, ab.TOWER)
    if before is not None and each and against:
        lost = figure(each, [before.repeat(len(each[0]), 0)] * len(each))
        yield Claim(
            verdict_of_loss(lost),
            "tuning the whole text tower lowers English AR, acquirers do not: the tower changes "
            f"it by {lost.signed}, acquirers by nothing. In the new language, acquirers differ "
            f"from the tower by {against.signed}",
        )


def _turn(results: Results) -> Iterator[Claim]:
    first = results.languages[0]
    for variant, text in (
        (ab.PACKS_IN_TURN, "adding packs does not change English or earlier languages"),
        (
            ab.TOWER_IN_TURN,
            "tuning the whole text tower for more languages lowers AR in English and in earlier "
            "languages",
        ),
    ):
        lost = {}
        for language, since in (("en", 0), (first, 1)):
            sides = [
                results.shares(variant, first, f"emoji after {number}", language)
                for number in (since, ab.IN_TURN)
            ]
            before, after = sides
            if before is not None and after is not None:
                lost[language] = figure([after], [before])
        if len(lost) == 2:
            if variant is ab.PACKS_IN_TURN:
                same = all(loss.low == loss.mean == loss.high == 0 for loss in lost.values())
                holds: Verdict = "held" if same else "did not hold"
            else:
                holds = verdict_of_loss(max(lost.values(), key=lambda loss: loss.high))
            yield Claim(
                holds,
                f"{text}: after {ab.IN_TURN} languages, English changes by {lost['en'].signed} and "
                f"the first language by {lost[first].signed}",
            )
