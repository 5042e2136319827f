"""Error messages for invalid settings: the key, the fault and a suggestion."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic_core import ErrorDetails


def fault_of(error: ErrorDetails, known: Iterable[str], dashes: str = "") -> str:
    """Return the message for a pydantic error, without its location.

    Args:
        error: The error.
        known: All valid keys, for suggestions.
        dashes: Prefix of a suggested key: `--` for flags.

    """
    if error["type"] == "extra_forbidden":
        keys = list(known)
        said = near(dotted(error["loc"]), keys, dashes)
        return f"unknown key{said or '; there are ' + ', '.join(keys)}"
    return f"{error['msg']}, found {error['input']!r:.60}"


def near(key: str, keys: list[str], dashes: str = "") -> str:
    """Return a suggestion of the most similar key (`; did you mean KEY?`), or an empty string."""
    matches = get_close_matches(key, keys, n=1)
    return f"; did you mean {dashes}{matches[0]}?" if matches else ""


def dotted(keys: Sequence[int | str]) -> str:
    """Return nested keys joined with dots, such as `nlt.steps`."""
    return ".".join(map(str, keys))


def depth(value: Any, keys: Sequence[int | str]) -> int:
    """Return how many of the nested keys exist in `value`, from the first one on."""
    for reached, step in enumerate(keys):
        try:
            value = value[step]
        except (LookupError, TypeError):
            return reached
    return len(keys)
