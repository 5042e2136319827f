"""Relatedness of languages by family and branch, from `families.yaml`."""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import yaml


@lru_cache(maxsize=1)
def _places() -> dict[str, tuple[str, str]]:
    """Load the family and branch of each language code."""
    text = (Path(__file__).parent / "families.yaml").read_text()
    families: dict[str, dict[str, list[str]]] = yaml.safe_load(text)
    return {
        code: (family, branch)
        for family, branches in families.items()
        for branch, codes in branches.items()
        for code in codes
    }


def family(language: str) -> tuple[str, str] | None:
    """Return the family and branch of a BCP-47 code, or None if `families.yaml` lacks it."""
    return _places().get(language) or _places().get(language.partition("-")[0])


def related(language: str, others: Iterable[str]) -> list[str]:
    """Return the related languages among `others`, the closest first.

    Variants of the same language come first, then the same branch, then the same family.
    """
    ours = family(language)

    def closeness(other: str) -> int:
        if other.partition("-")[0] == language.partition("-")[0]:
            return 3
        theirs = family(other)
        if ours is None or theirs is None or theirs[0] != ours[0]:
            return 0
        return 2 if theirs == ours else 1

    near = [(closeness(other), other) for other in sorted(set(others) - {language})]
    return [other for close, other in sorted(near, key=lambda pair: -pair[0]) if close]
