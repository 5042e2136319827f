"""Acquires a language on the cluster at RAY_ADDRESS, as a job file says; SIGTERM stops it."""

import json
import signal
import sys
import threading
import time
from pathlib import Path

from nodes import STOPPED  # a script finds what is beside it

from mla_ray.data.corpus import Corpus
from mla_ray.runtime.cluster import ray_session
from mla_ray.runtime.progress import Progress, Stopped
from mla_ray.training.acquisition import acquire
from mla_ray.training.config import AcquireConfig
from mla_ray.training.workers import Hooks, Workers


def say(progress: Progress) -> None:
    print(f"{time.strftime('%X')} {progress}", flush=True)


def main() -> int:
    job = json.loads(Path(sys.argv[1]).read_text())
    stop = threading.Event()
    with ray_session():
        signal.signal(signal.SIGTERM, lambda number, frame: stop.set())  # Ray has put its own
        try:
            acquire(
                job["native"],
                [Corpus(job["language"], [job["pairs"]], job["captions"])],
                AcquireConfig.model_validate(job["config"]),
                job["run"],
                store=job["store"],
                workers=Workers(**job["workers"]),
                resume=job["resume"],
                hooks=Hooks(report=say, stop=stop),
            )
        except Stopped as stopped:
            print(stopped)
            return STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())
