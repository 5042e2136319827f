"""Watch the autoscaled application under load: replicas, latency and refused requests over time.

    python -m benchmarks.scaling [PART ...] [--run runs/demo] [--picture docs/scaling.png]
                                [--json scaling.json]

Parts: start, saturate, sawtooth, overload, zero. All parts run by default, in about 25 minutes. The
benchmark needs Debian's `wrk`. It uses the German pack of `make demo` in `--run`, and its index of
all emoji. What is missing is made first.

The deployments are those of serve/config.yaml, on a private Ray with 16 logical CPUs. Real cores
may be fewer: replicas then share them, and more replicas do not answer more requests. These
settings differ: no rate limit, at most three text encoders, and the delays that `TEST` names.

- start: the parts of the start of a text encoder, in a process of its own.
- saturate: requests of 16 German texts over 48 connections for two minutes, then none. (Of single
  searches, the ingress does more than the encoder.)
- sawtooth: ten minutes, in each 30 s over 48 connections and 30 s without load.
- overload: twice the requests that two text encoders, the most there may be, have just answered,
  for five minutes, at a fixed rate, whether earlier requests are answered or not.
- zero: an image encoder with min_replicas 0: the first request, until it is gone again.
"""

import argparse
import asyncio
import io
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Picture
from PIL import Image

from benchmarks.serving import Bench, lua_list, run_parts, wrk
from mla_ray.demo.showcase import prepare
from mla_ray.model.native import Native
from mla_ray.runtime.cluster import free_port, ray_session
from mla_ray.serving.local import NAME, running, scratch_environment
from mla_ray.serving.schemas import JSON
from mla_ray.serving.settings import Settings

Figures = dict[str, Any]
TEST: Figures = {"downscale_delay_s": 60}
LOGICAL_CPUS, CONNECTIONS, TEXTS, SLICE_S = 16, 48, 16, 2
PATH = "/v1/embeddings/text"
CONFIG = Path(__file__).parent.parent / "serve" / "config.yaml"

START = """
import json, time
began = time.perf_counter()
parts, last = {}, began
def part(name):
    global last
    now = time.perf_counter()
    parts[name], last = round(now - last, 2), now
import mla_ray.serving.deployments
part("imports, s")
from mla_ray.serving.encoders import TextEngine, load_native
engine = TextEngine(load_native(NATIVE, 1), PACKS, 32)
part("native, s")
engine.warm()
part("packs and first texts, s")
print(json.dumps(parts))
"""


def deployments(**changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of serve/config.yaml by deployment, with changed autoscaling settings."""
    config = yaml.safe_load(CONFIG.read_text())
    options = {}
    for deployment in config["applications"][0]["deployments"]:
        name = deployment.pop("name")
        if "autoscaling_config" in deployment:
            deployment["autoscaling_config"] |= TEST | dict(changes.get(name, {}))
        options[name] = deployment
    return options


class Watch:
    """Samples of the number of replicas, taken in a thread, and of the load."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.replicas: list[tuple[float, dict[str, int], dict[str, int]]] = []  # running, starting
        self.load: list[tuple[float, int, Figures]] = []  # time, connections, result of wrk
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def now(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.began

    def count(self, deployment: str) -> int:
        """Return the last number of running replicas."""
        return self.replicas[-1][1].get(deployment, 0) if self.replicas else 0

    def first(self, deployment: str, replicas: int, after: float = 0) -> float | None:
        """Return the first time after `after` at which exactly `replicas` replicas ran."""
        times = (t for t, had, _ in self.replicas if t >= after and had[deployment] == replicas)
        return next((round(t, 1) for t in times), None)

    def changes(self, deployment: str) -> list[tuple[float, int]]:
        """Return the changes of the number of running replicas, with their times."""
        changes: list[tuple[float, int]] = []
        for t, had, _ in self.replicas:
            if not changes or changes[-1][1] != had[deployment]:
                changes.append((round(t, 1), had[deployment]))
        return changes[1:]

    def _run(self) -> None:
        from ray import serve
        from ray.serve.schema import ReplicaState

        while not self._stop.wait(0.5):
            application = serve.status().applications[NAME].deployments
            states = {name: of.replica_states for name, of in application.items()}
            had = {name: int(of.get(ReplicaState.RUNNING, 0)) for name, of in states.items()}
            starting = {name: int(of.get(ReplicaState.STARTING, 0)) for name, of in states.items()}
            self.replicas.append((self.now(), had, starting))


def milliseconds(latency: str) -> float:
    """Parse a latency of wrk, such as 12.3ms."""
    for unit, factor in (("us", 1e-3), ("ms", 1.0), ("s", 1e3), ("m", 6e4)):
        if latency.endswith(unit):
            return float(latency.removesuffix(unit)) * factor
    raise ValueError(latency)


class Scene:
    """One application with its load."""

    def __init__(self, bench: Bench, url: str) -> None:
        self.url = url
        self.scratch = bench.scratch
        names = [text for language, text in bench.queries if language == "de"]
        self.bodies = [
            json.dumps(
                {
                    "inputs": [{"text": text, "language": "de"} for text in names[n : n + TEXTS]],
                    "encoding": "base64",
                }
            )
            for n in range(0, len(names) - TEXTS)
        ]
        self.script = (
            f"local bodies = {lua_list(self.bodies)}\nlocal n = 0\n"
            'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
            f'wrk.path = "{PATH}"\n'
            "request = function() n = n + 1\n"
            "  return wrk.format(nil, nil, nil, bodies[n % #bodies + 1])\n"
            "end\n"
        )

    def load(self, watch: Watch, connections: int, seconds: float) -> None:
        """Send texts over some connections, measured in slices of `SLICE_S` seconds."""
        until = watch.now() + seconds
        while watch.now() < until:
            began = watch.now()
            if connections:
                result = wrk(self.url, connections, SLICE_S, self.script, self.scratch)
            else:
                time.sleep(SLICE_S)
                result = {"rate": 0.0, "failed": 0, "errors": ""}
            watch.load.append((began, connections, result))

    async def send(self, rate: float, seconds: float) -> tuple[Counter[str], list[float]]:
        """Send texts at a rate, whether earlier requests are answered or not.

        Args:
            rate: Requests per second.
            seconds: Time during which requests are sent.

        Returns:
            The number of answers by status, and the latencies in seconds of the accepted requests.

        """
        statuses: Counter[str] = Counter()
        latencies: list[float] = []

        async def one(client: httpx2.AsyncClient, number: int) -> None:
            began = time.perf_counter()
            body = self.bodies[number % len(self.bodies)]
            answer = await client.post(PATH, content=body, headers={"Content-Type": JSON})
            statuses[str(answer.status_code)] += 1
            if answer.status_code == 200:
                latencies.append(time.perf_counter() - began)
            elif "retry-after" not in answer.headers:
                statuses["without Retry-After"] += 1

        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(base_url=self.url, timeout=60, limits=limits) as client:
            began = time.perf_counter()
            async with asyncio.TaskGroup() as tasks:
                for number in range(round(rate * seconds)):
                    await asyncio.sleep(max(began + number / rate - time.perf_counter(), 0))
                    tasks.create_task(one(client, number))
        return statuses, latencies


@contextmanager
def deployed(bench: Bench, **changes: Mapping[str, Any]) -> Iterator[tuple[Scene, Watch]]:
    """Run the application on a private Ray, and watch it."""
    index = bench.scratch / "index"
    if not index.exists():
        subprocess.run(["cp", "-r", str(bench.index), str(index)], check=True)
    settings = Settings(packs=str(bench.packs), index=f"edge:{index}")
    port = free_port()
    with (
        ray_session(LOGICAL_CPUS),
        running(settings, port=port, options=deployments(**changes)) as url,
        Watch() as watch,
    ):
        scene = Scene(bench, url)
        scene.load(watch, 1, 4)  # warm-up
        watch.began += watch.now()
        watch.replicas.clear()
        watch.load.clear()
        yield scene, watch


def failures(watch: Watch) -> Figures:
    """Return the number of answers other than 2xx, and socket errors."""
    return {
        "failed": sum(result["failed"] for *_, result in watch.load),
        "socket errors": [result["errors"] for *_, result in watch.load if result["errors"]],
    }


def start(bench: Bench) -> Figures:
    """Return the parts of the start of a text encoder with all packs, the median of three."""
    code = START.replace("NATIVE", repr(bench.native.name)).replace("PACKS", repr(str(bench.packs)))
    runs = []
    for _ in range(3):
        began = time.perf_counter()
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        runs.append(json.loads(out) | {"process, s": round(time.perf_counter() - began, 2)})
    return {name: sorted(run[name] for run in runs)[1] for name in runs[0]}


def saturate(bench: Bench, picture: Path | None) -> Figures:
    """Load the application for two minutes, and wait until it is small again."""
    with deployed(bench, TextEncoder={"max_replicas": 3}) as (scene, watch):
        scene.load(watch, 0, 10)
        began = watch.now()
        scene.load(watch, CONNECTIONS, 120)
        ended = watch.now()
        while watch.count("TextEncoder") > 1 and watch.now() < ended + 240:
            scene.load(watch, 0, SLICE_S)
        scene.load(watch, 0, 6)
        if picture:
            draw(watch, picture)
        decided = next((t for t, _, more in watch.replicas if t > began and more["TextEncoder"]), 0)

        def after(replicas: int, since: float) -> float | None:
            at = watch.first("TextEncoder", replicas, since)
            return None if at is None else round(at - since, 1)

        return {
            "decision, s after the load began": round(decided - began, 1),
            "second encoder, s after the load began": after(2, began),
            "third encoder, s after the load began": after(3, began),
            "one again, s after the load ended": after(1, ended),
            "ingresses at most": max(had["Ingress"] for _, had, _ in watch.replicas),
            "requests/s, first and last 10 s": [
                round(float(np.mean([r["rate"] for _, c, r in part if c])))
                for part in (
                    [s for s in watch.load if began <= s[0] < began + 10],
                    [s for s in watch.load if ended - 10 <= s[0] < ended],
                )
            ],
            "changes": watch.changes("TextEncoder"),
        } | failures(watch)


def sawtooth(bench: Bench, periods: int) -> Figures:
    """Load the application half of each minute."""
    with deployed(bench, TextEncoder={"max_replicas": 3}) as (scene, watch):
        for _ in range(periods):
            scene.load(watch, CONNECTIONS, 30)
            scene.load(watch, 0, 30)
        changes = watch.changes("TextEncoder")
        by_period = Counter(int(t // 60) for t, _ in changes)
        return {
            "periods of 60 s": periods,
            "changes": changes,
            "most changes in a period": max(by_period.values(), default=0),
        } | failures(watch)


def overload(bench: Bench, seconds: int) -> Figures:
    """Send twice as many requests as the largest size answers."""
    with deployed(bench, TextEncoder={"max_replicas": 2}, Ingress={"max_replicas": 1}) as (
        scene,
        watch,
    ):
        scene.load(watch, CONNECTIONS, 60)
        capacity = float(np.median([result["rate"] for *_, result in watch.load[-10:]]))
        encoders, before = watch.count("TextEncoder"), memory()
        statuses, latencies = asyncio.run(scene.send(2 * capacity, seconds))
        return {
            "text encoders": encoders,
            "requests/s answered at 48 connections": round(capacity),
            "requests/s sent": round(2 * capacity),
            "seconds": seconds,
            "answers": dict(statuses),
            "requests/s accepted": round(len(latencies) / seconds),
            "accepted, p50 and p99, s": np.percentile(latencies, [50, 99]).round(2).tolist(),
            "max_wait_s": Settings().max_wait_s,
            "memory before and after, MB": [before, memory()],
        }


def zero(bench: Bench) -> Figures:
    """Wait until the image encoder is gone, and send an image."""
    grey = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(grey, "PNG")
    options = {"min_replicas": 0, "downscale_delay_s": 5}
    with deployed(bench, ImageEncoder=options) as (scene, watch):
        while watch.count("ImageEncoder") or not watch.replicas:
            time.sleep(1)
        health = httpx2.get(f"{scene.url}/healthz", timeout=30)
        began = time.perf_counter()
        answer = httpx2.post(
            f"{scene.url}/v1/embeddings/image",
            content=grey.getvalue(),
            headers={"Content-Type": "image/png"},
            timeout=60,
        )
        first = time.perf_counter() - began
        came = watch.now()
        while watch.first("ImageEncoder", 1, came) is None:
            time.sleep(0.5)
        while watch.count("ImageEncoder"):
            time.sleep(0.5)
        return {
            "healthz without a replica": [health.status_code, health.json()["parts"]],
            "first image": answer.status_code,
            "first image, s": round(first, 1),
            "gone again after, s": round(watch.now() - came, 1),
        }


def memory() -> dict[str, int]:
    """Return the unique memory in MB of all replicas, by deployment."""
    found: Counter[str] = Counter()
    for child in psutil.Process().children(recursive=True):
        name = (child.cmdline() or [""])[0]
        if name.startswith("ray::ServeReplica:"):
            found[name.rsplit(":", 1)[1]] += child.memory_full_info().uss // 2**20
    return dict(found)


def draw(watch: Watch, path: Path) -> None:
    """Draw load, replicas and latencies over time."""
    picture = Picture(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(picture)
    load, replicas, latency = picture.subplots(3, 1, sharex=True)
    times = [t for t, *_ in watch.load]
    load.step(times, [c for _, c, _ in watch.load], where="post", color="#8a9099")
    load.set_ylabel("connections")
    rate = load.twinx()
    rate.step(times, [r["rate"] for *_, r in watch.load], where="post", color="#0072b2")
    rate.set_ylabel("requests/s", color="#0072b2")
    for name, color in (("TextEncoder", "#0072b2"), ("Ingress", "#d55e00")):
        sampled = [t for t, *_ in watch.replicas]
        replicas.step(
            sampled,
            [had[name] + more[name] for _, had, more in watch.replicas],
            where="post",
            color=color,
            linestyle=":",
            label=f"{name}, wanted",
        )
        replicas.step(
            sampled,
            [had[name] for _, had, _ in watch.replicas],
            where="post",
            color=color,
            label=f"{name}, running",
        )
    replicas.set_ylabel("replicas")
    replicas.legend(frameon=False, fontsize="small", ncols=2)
    loaded = [(t, r) for t, c, r in watch.load if c]
    for key, color in (("p50", "#0072b2"), ("p99", "#d55e00")):
        latency.plot(
            [t for t, _ in loaded],
            [milliseconds(r[key]) for _, r in loaded],
            color=color,
            label=key,
        )
    latency.set(ylabel="latency, ms", xlabel="seconds", ylim=(0, None))
    latency.legend(frameon=False, fontsize="small")
    for axis in (load, replicas, latency):
        axis.grid(axis="both", color="#e5e7ea", linewidth=0.7)
    picture.savefig(path, dpi=110)


def main() -> None:
    """Parse the options, and run and print the requested parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ("start", "saturate", "sawtooth", "overload", "zero")
    parser.add_argument("parts", nargs="*", choices=[*names, []], default=[])
    parser.add_argument("--periods", type=int, default=10, help="periods of the sawtooth")
    parser.add_argument("--seconds", type=int, default=300, help="seconds of overload")
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    prepare(given.run, given.data)
    with tempfile.TemporaryDirectory(prefix="mla-scaling-") as scratch, scratch_environment():
        bench = Bench(Native.load("emoji-clip"), given.run, given.data, Path(scratch), ("de",))
        timed: dict[str, Callable[[], Figures]] = {
            "start": lambda: start(bench),
            "saturate": lambda: saturate(bench, given.picture),
            "sawtooth": lambda: sawtooth(bench, given.periods),
            "overload": lambda: overload(bench, given.seconds),
            "zero": lambda: zero(bench),
        }
        run_parts(timed, given.parts or names, given.json)


if __name__ == "__main__":
    main()
