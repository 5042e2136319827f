"""Recognition of fingerprints that mla-ray 0.1.0 wrote.

Packs, indexes, features, runs and lineages of mla-ray 0.1.0 identify their native by rule 1 of
`mla_ray.model.fingerprint`. They are accepted with a warning, because rule 1 does not distinguish
natives that differ only in settings or tokenizer.
"""

import logging
from functools import cache

log = logging.getLogger(__name__)


def recognised(fingerprint: str, today: str, v1: str, what: object, remedy: str) -> bool:
    """Return whether a fingerprint belongs to a native, by the current rule or by rule 1.

    A match by rule 1 logs a warning, once per process and message.

    Args:
        fingerprint: Fingerprint found in `what`.
        today: Native's fingerprint by the current rule.
        v1: Native's fingerprint by rule 1, or "" if unknown.
        what: File, folder or collection that holds the fingerprint, for the log.
        remedy: Sentence in the log that tells the user what to do.

    """
    if fingerprint == today:
        return True
    if not v1 or fingerprint != v1:
        return False
    _warn_once(
        f"{what}: has the fingerprint of mla-ray 0.1.0, which covers a native's weights and "
        f"preprocessing, but not its other settings or its tokenizer; it is accepted. {remedy}"
    )
    return True


@cache
def _warn_once(message: str) -> None:
    log.warning(message)
