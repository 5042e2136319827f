"""Names of a collection's versions, and the errors of those that are missing."""

import re
from collections.abc import Iterable

from mla_ray.index.backend import VectorSpace


def version(space: VectorSpace, collection: str, number: int) -> str:
    """Return the name of a version of a collection."""
    return f"{collection}-{space.fingerprint[:12]}-v{number}"


def versions(space: VectorSpace, collection: str, names: Iterable[str]) -> dict[str, int]:
    """Return the numbers of those `names` that are versions of this collection, by name."""
    pattern = re.compile(re.escape(f"{collection}-{space.fingerprint[:12]}-v") + r"([1-9][0-9]*)")
    matches = [pattern.fullmatch(name) for name in names]
    return {match[0]: int(match[1]) for match in matches if match}


def next_version(space: VectorSpace, collection: str, names: Iterable[str]) -> str:
    """Return the name of the version after the latest one in `names`."""
    taken = versions(space, collection, names).values()
    return version(space, collection, max(taken, default=0) + 1)


def check_kept(name: str, names: Iterable[str]) -> None:
    """Raise a RuntimeError if the version being filled is no longer in `names`.

    Another rebuild that ended first has then removed it.
    """
    if name not in names:
        raise RuntimeError(
            f"{name} is gone: another rebuild of the collection ended first and took its place; "
            "let one process rebuild at a time, and run this one again if its data is newer"
        )


def no_such_collection(where: str) -> LookupError:
    """Return the error for a collection that does not exist."""
    return LookupError(f"{where} does not exist; ingest into it first, or open with create=True")
