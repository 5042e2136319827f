"""Fingerprints that were written by the rule of before are recognised, and that is logged.

What mla-ray 0.1.0 kept (packs, indexes, features, runs, lineages) names its native by the first
rule of `mla_ray.model.fingerprint`. It is taken, though by that rule two natives are one that
differ in neither weights nor preprocessing.
"""

import logging
from functools import cache

log = logging.getLogger(__name__)


def recognised(fingerprint: str, today: str, v1: str, what: object, remedy: str) -> bool:
    """Whether a fingerprint is a native's, by the rule of today or the first one.

    The latter is logged, once a process.

    Args:
        fingerprint: in `what`.
        today: the native's own.
        v1: the native's own by the first rule; "" if that is not known.
        what: has it: a file, a folder, a collection.
        remedy: what to do.

    """
    if fingerprint == today:
        return True
    if not v1 or fingerprint != v1:
        return False
    _warn_once(
        f"{what}: has the fingerprint of mla-ray 0.1.0, which saw a native's weights and "
        f"preprocessing, not its other settings nor its tokenizer; it is taken. {remedy}"
    )
    return True


@cache
def _warn_once(message: str) -> None:
    log.warning(message)
