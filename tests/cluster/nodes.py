"""A Ray of several nodes on this machine, all on loopback, and what can happen to it.

Every node is a raylet with its workers, every driver a process of its own: any of them can be
killed as a machine can.
"""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from mla_ray.runtime.cluster import free_port
from mla_ray.serving import local
from tests.support import ROOT

HERE = Path(__file__).parent

DEADLINE = 600.0
"""Seconds for anything that is to happen: no test is about how fast it does."""
STOPPED = 75
"""What a driver ends with that was asked to end."""

RAYLET = re.compile(r"/raylet/raylet .*--node_id=(\w+)")
"""The command line of the process that is a node, with the node's id."""

T = TypeVar("T")


def wait_for(what: str, found: Callable[[], T], seconds: float = DEADLINE) -> T:
    """The first answer of `found` that is true."""
    end = time.monotonic() + seconds
    while not (answer := found()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.05)
    return answer


def private_environment(root: Path) -> dict[str, str]:
    """For every process of a Ray that no other Ray on this machine meets."""
    token = root / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    scratch = root / "scratch"
    scratch.mkdir()
    others = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return others | {
        "RAY_TMPDIR": str(root),
        "TMPDIR": str(scratch),  # what killed processes leave goes with the rest
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every socket on 127.0.0.1
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.1",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",  # that room for as many workers is awaited
        "RAY_health_check_period_ms": "500",  # five refusals, and a node is dead
        "RAY_FAKE_CLUSTER": "1",  # raylets may pass for machines of a cloud
        "RAY_enable_autoscaler_v2": "0",  # its fake cloud does not work
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "10",  # then it replaces a node that is lost
    }


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and all that came of it."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def living(processes: list[psutil.Process]) -> list[psutil.Process]:
    def lives(process: psutil.Process) -> bool:
        try:
            return bool(process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    return [process for process in processes if lives(process)]


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def kill(processes: list[psutil.Process]) -> None:
    """SIGKILL, all at once, and wait until they are gone."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    wait_for("killed processes end", lambda: not living(processes))


def end(processes: list[psutil.Process]) -> None:
    """Wait until they ended by themselves; those that do not are killed, which is an error.

    An actor that waits for its control store gives up after a minute.
    """
    try:
        wait_for("processes end", lambda: not living(processes), 120)
    except TimeoutError:
        left = living(processes)
        names = [title(process) for process in left]
        kill(left)
        raise AssertionError(f"left behind: {names}") from None


@dataclass(frozen=True)
class Node:
    """One node: its id in Ray and the processes it began with."""

    id: str
    roots: tuple[psutil.Process, ...]

    def processes(self) -> list[psutil.Process]:
        return [process for root in self.roots for process in family(root)]

    def train_workers(self) -> list[psutil.Process]:
        """The processes that train: workers of Ray Train, trials of Ray Tune that have none."""
        kinds = ("TrainWorker", "ImplicitFunc")
        return [p for p in self.processes() if any(kind in title(p) for kind in kinds)]


class Nodes:
    """A cluster; its first node is the head, where drivers run."""

    def __init__(
        self, root: Path, cpus: int, grows: dict[str, Any] | None, serves: bool = False
    ) -> None:
        self.root = root
        self.environment = private_environment(root)
        options = autoscaler(root, cpus, grows) if grows else {}
        if serves:
            self.environment |= serving(root)
            port = free_port()
            self.dashboard = f"http://127.0.0.1:{port}"
            options |= {"include_dashboard": True, "dashboard_port": port}
        self.log = (root / "nodes.log").open("w")
        self.holder = subprocess.Popen(
            [sys.executable, str(HERE / "holder.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=self.environment,
            start_new_session=True,
        )
        self.nodes: list[Node] = []
        self.grows = grows
        self._add(cpus, {}, options)

    def _ask(self, do: str, **request: Any) -> Any:
        assert self.holder.stdin
        assert self.holder.stdout
        self.holder.stdin.write(json.dumps({"do": do} | request) + "\n")
        self.holder.stdin.flush()
        line = self.holder.stdout.readline()
        assert line, f"the nodes ended: {Path(self.log.name).read_text()}"
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["answer"]

    def add(self, cpus: int = 1, **resources: float) -> Node:
        return self._add(cpus, resources, {})

    def _add(self, cpus: int, resources: dict[str, float], options: dict[str, Any]) -> Node:
        made = self._ask("add", cpus=cpus, resources=resources, **options)
        node = Node(made["node"], tuple(psutil.Process(pid) for pid in made["pids"]))
        self.address: str = made["address"]
        self.nodes.append(node)
        return node

    def remove(self, node: Node) -> None:
        """The machine loses its power: everything on it is gone at once, nothing says goodbye."""
        kill(node.processes())
        self._ask("forget", node=node.id)
        self.nodes.remove(node)

    def drain(self, node: Node, seconds: float) -> None:
        """The cloud announces that it takes this node away in so many seconds."""
        self._ask("drain", node=node.id, seconds=seconds)

    def alive(self) -> set[str]:
        """The ids of the nodes that Ray counts as alive."""
        return set(self._ask("alive"))

    def train_workers(self) -> list[psutil.Process]:
        return [worker for node in self.nodes for worker in node.train_workers()]

    def grown(self) -> list[Node]:
        """The nodes that the autoscaler added; their processes are those of the head, too."""
        raylets = [(RAYLET.search(title(p)), p) for p in self.nodes[0].processes()]
        found = [Node(match[1], (raylet,)) for match, raylet in raylets if match]
        return [node for node in found if node.id != self.nodes[0].id]

    def lose(self, node: Node) -> None:
        """The same as `remove`, of a node that the autoscaler added."""
        kill(node.processes())

    def stop(self) -> None:
        """Stop all nodes; an AssertionError if a process stays behind."""
        assert self.holder.stdin
        everything = family(psutil.Process(self.holder.pid))
        if self.grows:  # Ray's fake cloud forgets this one when it takes a machine away
            kill([process for process in everything if "log_monitor.py" in title(process)])
        self.holder.stdin.close()
        self.holder.wait(120)
        self.log.close()
        end(everything)


def autoscaler(root: Path, cpus: int, grows: dict[str, Any]) -> dict[str, Any]:
    """What a head needs to add nodes by itself: raylets on this machine, of Ray's fake cloud."""
    port = free_port()
    config = {
        "cluster_name": "a-test",
        "max_workers": 4,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": f"127.0.0.1:{port}",
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": cpus}, "node_config": {}, "max_workers": 0},
            "grown": {
                "resources": grows | {"object_store_memory": 80_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 4,
            },
        },
        # Of no use here, but Ray asks for them.
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }
    path = root / "autoscaler.json"
    path.write_text(json.dumps(config))
    # Under any other id, the head would seem to have all of its room, whatever runs there.
    identity = {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID}
    return {"autoscaling_config": str(path), "gcs_server_port": port, "env_vars": identity}


def serving(root: Path) -> dict[str, str]:
    """What a cluster that serves has in its environment; HAProxy's files go with the rest."""
    scratch = root / "haproxy"
    scratch.mkdir()
    return local.environment(scratch)


@contextmanager
def ray_root() -> Iterator[Path]:
    """A folder for a Ray's sessions; its path is short, as those of sockets must be."""
    root = Path(tempfile.mkdtemp(prefix="mla-"))
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def nodes(
    cpus: int = 2, grows: dict[str, Any] | None = None, serves: bool = False
) -> Iterator[Nodes]:
    """A cluster of one node, for the body of a `with`.

    Ray's autoscaler adds nodes of the resources `grows` as they are asked for, if it is given.
    A cluster that `serves` has a dashboard, which takes a Serve config.
    """
    with ray_root() as root:
        cluster = Nodes(root, cpus, grows, serves)
        try:
            yield cluster
        finally:
            cluster.stop()


class Driver:
    """A program that acquires a language on a cluster; what it says goes to a file in `folder`."""

    def __init__(self, cluster: Nodes, job: dict[str, Any], folder: Path) -> None:
        path = folder / "job.json"
        path.write_text(json.dumps(job))
        self.run = Path(job["run"])
        self.log = folder / "driver.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "driver.py"), str(path)],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=cluster.environment | {"RAY_ADDRESS": cluster.address},
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def until(self, what: str, found: Callable[[], T], seconds: float = DEADLINE) -> T:
        """Wait for something that happens while the driver runs."""

        def found_or_ended() -> tuple[T] | None:
            ended = self.process.poll() is not None
            answer = found()
            if answer:
                return (answer,)
            assert not ended, f"ended before: {what}\n{self.output}"
            return None

        try:
            return wait_for(what, found_or_ended, seconds)[0]  # type: ignore[index]
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.output}") from None

    def signal(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)

    def finish(self) -> None:
        """Wait for the end, which is to be a good one."""
        try:
            code = self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end\n{self.output}") from None
        assert code == 0, f"ended with {code}\n{self.output}"

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    # What it has left so far.

    def checkpoints(self) -> list[int]:
        """Numbers of the whole checkpoints, in order."""
        written = (self.run / "checkpoints").glob("*/checkpoint.json")
        return sorted(int(path.parent.name) for path in written)

    def metrics(self) -> list[dict[str, Any]]:
        path = self.run / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def reached(self, step: int) -> bool:
        return any(row["step"] >= step for row in self.metrics())
