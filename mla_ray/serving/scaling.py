"""Autoscaling policy for Ray Serve: scale up when work waits, and down when replicas are idle.

Ray Serve's own policy counts the requests that a deployment has under way. An ingress collects
texts while an encoder is busy and sends them in one request. The encoder therefore never has more
than a few requests, however many texts wait. This policy reads the load that every replica measures
(`mla_ray.serving.load`). The wait grows when replicas are too few. The busy share tells how much
work there is.

Ray Serve imports this module in its controller. It must stay free of heavy imports.
"""

import math
from typing import Any

from ray.serve.config import AutoscalingContext

from mla_ray.serving.load import BUSY, WAIT

MOST = 2.0
"""Largest factor of one step up."""


class WaitPolicy:
    """Policy of a deployment whose replicas report their load in `record_autoscaling_stats`.

    With R running replicas, mean wait w and the sum B of their busy shares, it asks for

    - R * min(w / max_wait_s, 2) replicas if w is over `max_wait_s`,
    - B / max_busy replicas if B / R is over `max_busy`,
    - B / target_busy replicas if R - 1 replicas would be less busy than `target_busy`,
    - R replicas otherwise.

    The work B does not depend on the number of replicas. So a step down does not cause the next
    step up. Ray Serve rounds up, applies `upscale_delay_s` and `downscale_delay_s`, and keeps the
    number within `min_replicas` and `max_replicas`.

    Args:
        max_wait_s: Mean time in seconds that work may wait.
        target_busy: Largest mean busy share after a step down, 0 to 1.
        max_busy: Mean busy share above which a replica is added even if nothing waits. An encoder
            that is always busy may still take more, in larger batches. An event loop cannot.

    """

    def __init__(
        self, max_wait_s: float = 0.05, target_busy: float = 0.6, max_busy: float = 1.0
    ) -> None:
        if max_wait_s <= 0 or not 0 < target_busy < max_busy <= 1:
            raise ValueError(
                f"max_wait_s {max_wait_s} must be positive, and 0 < target_busy {target_busy} < "
                f"max_busy {max_busy} <= 1"
            )
        self._max_wait_s = max_wait_s
        self._target_busy = target_busy
        self._max_busy = max_busy

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """Return the number of replicas to have, before rounding, and the new policy state."""
        load = context.aggregated_metrics or {}
        waits, shares = load.get(WAIT, {}), load.get(BUSY, {})
        if not waits or not shares:
            return context.target_num_replicas, {}
        replicas = context.current_num_replicas
        wait = sum(waits.values()) / len(waits)
        return self.replicas(replicas, wait, sum(shares.values())), {}

    def replicas(self, running: int, wait_s: float, work: float) -> float:
        """Return the number of replicas to have, before rounding.

        Args:
            running: Number of running replicas.
            wait_s: Mean wait in seconds.
            work: Sum of the busy shares.

        """
        if wait_s > self._max_wait_s:
            return running * min(wait_s / self._max_wait_s, MOST)
        if work > self._max_busy * running:
            return work / self._max_busy
        if work < self._target_busy * (running - 1) or work == 0:
            return math.ceil(work / self._target_busy)
        return running
