"""What is wrong with a setting, in our words: the key, the fault and what would be right."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic_core import ErrorDetails


def fault_of(error: ErrorDetails, known: Iterable[str], dashes: str = "") -> str:
    """The fault of one of pydantic's errors, without its place; `known` are the keys there are."""
    if error["type"] == "extra_forbidden":
        keys = list(known)
        said = near(dotted(error["loc"]), keys, dashes)
        return f"unknown key{said or '; there are ' + ', '.join(keys)}"
    return f"{error['msg']}, found {error['input']!r:.60}"


def near(key: str, keys: list[str], dashes: str = "") -> str:
    """Asks whether the key that is most like this one was meant, if any is like it."""
    matches = get_close_matches(key, keys, n=1)
    return f"; did you mean {dashes}{matches[0]}?" if matches else ""


def dotted(keys: Sequence[int | str]) -> str:
    """Nested keys as one: `nlt.steps`."""
    return ".".join(map(str, keys))


def depth(value: Any, keys: Sequence[int | str]) -> int:
    """How many of the nested keys there are in `value`."""
    for reached, step in enumerate(keys):
        try:
            value = value[step]
        except (LookupError, TypeError):
            return reached
    return len(keys)
