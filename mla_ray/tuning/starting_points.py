"""First points of a search: the default settings and the best settings of related languages."""

import logging
from collections.abc import Mapping

from pydantic import ValidationError
from upath import UPath

from mla_ray.runtime.storage import names_in, read_json
from mla_ray.training.config import AcquireConfig
from mla_ray.tuning.families import related
from mla_ray.tuning.outcome import Outcome
from mla_ray.tuning.space import Space
from mla_ray.tuning.trial import Point

log = logging.getLogger(__name__)

RELATED = 2
"""Maximum number of related languages whose best settings are tried first."""


def starting_points(
    language: str, space: Space, hidden: int, known: Mapping[str, Outcome]
) -> list[tuple[str, Point]]:
    """Return the first points of a search with the origin of each, without duplicates.

    Args:
        language: BCP-47 code.
        space: Search space of the points.
        hidden: Hidden size of the acquirers if the settings do not give one.
        known: Outcomes of earlier sweeps on the same native, by language.

    """
    default = space.point(AcquireConfig(hidden=AcquireConfig().hidden or hidden))
    points: list[tuple[str, Point]] = [("defaults", default)]
    for other in related(language, known)[:RELATED]:
        best = known[other].best_trial.settings
        near = {
            name: domain.nearest(best[name]) if name in best else default[name]
            for name, domain in space.parameters.items()
        }
        if near not in [point for _, point in points]:
            points.append((f"best for {other}", near))
    return points


def known_outcomes(results: UPath, native: str) -> dict[str, Outcome]:
    """Read the outcomes of earlier sweeps on a native, by language.

    A JSON file that is not an outcome is skipped with a warning.
    """
    outcomes: dict[str, Outcome] = {}
    for name in names_in(results):
        if not name.endswith(".json"):
            continue
        try:
            outcome = Outcome.model_validate(read_json(results / name))
        except (ValueError, ValidationError) as fault:
            log.warning("%s is not the outcome of a sweep: %s", results / name, fault)
            continue
        if outcome.native == native:
            outcomes[outcome.language] = outcome
    return outcomes
