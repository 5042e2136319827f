"""Drivers that tests start on a cluster, and the settings of what they train."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mla_ray.training.config import AcquireConfig, Stage
from tests.cluster.nodes import Driver, Nodes

CONFIG = AcquireConfig(
    nlt=Stage(steps=2400, batch=8, lr=1e-3),
    le=Stage(steps=200, batch=8, lr=1e-3),
    vocab_size=400,
    checkpoint_every=200,
)
Start = Callable[..., Driver]


@contextmanager
def starting(
    cluster: Nodes, job: dict[str, Any], factory: pytest.TempPathFactory
) -> Iterator[Start]:
    """Starts drivers; those that still run at the end are killed."""
    drivers: list[Driver] = []

    def start(run: Path, **changes: Any) -> Driver:
        task = job | {"run": str(run)} | changes
        drivers.append(Driver(cluster, task, factory.mktemp("driver")))
        return drivers[-1]

    try:
        yield start
    finally:
        for driver in drivers:
            driver.stop()
