"""A process that holds the nodes of a Ray cluster, told what to do line by line in JSON.

Ray's `Cluster` keeps its state in the process it lives in, which in a test session already has
another Ray: so it gets a process of its own. It ends, with every node, when its input does.
"""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster


class Holder:
    def __init__(self) -> None:
        self.cluster = Cluster()
        self.nodes: dict[str, Any] = {}

    def add(self, cpus: int, resources: dict[str, float], **options: Any) -> dict[str, Any]:
        """One more node; the first is the head. `options` are Ray's."""
        node = self.cluster.add_node(
            num_cpus=cpus,
            resources=resources,
            object_store_memory=80_000_000,
            **{"include_dashboard": False, **options},
        )
        self.nodes[node.node_id] = node
        processes = [info.process.pid for kind in node.all_processes.values() for info in kind]
        return {"node": node.node_id, "pids": processes, "address": self.cluster.address}

    def forget(self, node: str) -> None:
        """A node whose processes were killed from outside."""
        self.cluster.remove_node(self.nodes.pop(node), allow_graceful=False)

    def drain(self, node: str, seconds: float) -> None:
        """Announce that a node will be taken away, as a cloud's notice of preemption does."""
        notice = subprocess.run(
            [
                Path(sys.executable).parent / "ray",
                "drain-node",
                f"--address={self.cluster.address}",
                f"--node-id={node}",
                "--reason=DRAIN_NODE_REASON_PREEMPTION",
                "--reason-message=a test takes it away",
                f"--deadline-remaining-seconds={seconds:.0f}",
            ],
            capture_output=True,
            text=True,
        )
        if notice.returncode:
            raise RuntimeError(f"the notice was not accepted: {notice.stderr}")

    def alive(self) -> list[str]:
        return [node["NodeID"] for node in self.cluster.global_state.node_table() if node["Alive"]]


def adopt_orphans() -> None:
    """Whatever a node leaves behind becomes a child of this process, where tests can see it."""
    PR_SET_CHILD_SUBREAPER = 36
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def main() -> None:
    adopt_orphans()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what Ray prints is no answer
    holder = Holder()
    try:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = {"answer": getattr(holder, request.pop("do"))(**request)}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            answers.write(json.dumps(answer) + "\n")
    finally:
        holder.cluster.shutdown()


if __name__ == "__main__":
    main()
