"""The application of `serve/config.yaml` on a cluster, deployed as `serve deploy` does it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import yaml

from mla_ray.runtime.cluster import free_port
from tests.cluster.nodes import Nodes
from tests.support import ROOT

CALL = "CALL encode OK"
"""What a replica's log says of each batch that it encoded."""


@dataclass(frozen=True)
class Replica:
    """A text encoder that answers."""

    id: str
    node: str
    log: Path

    def calls(self) -> int:
        """The batches that it has encoded."""
        return self.log.read_text().count(CALL)


class Application:
    """One replica of each deployment, and as many text encoders as a test asks for.

    `args` are settings in place of the file's; `encoder` are the resources of a text encoder.
    """

    def __init__(self, cluster: Nodes, args: dict[str, Any], encoder: dict[str, float]) -> None:
        token = (cluster.root / "token").read_text()
        self.logs = cluster.root / "ray" / "session_latest" / "logs"
        self.ray = httpx2.Client(
            base_url=cluster.dashboard, headers={"Authorization": f"Bearer {token}"}, timeout=60
        )
        self.config = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
        self.config["http_options"]["port"] = free_port()
        self.url = f"http://127.0.0.1:{self.config['http_options']['port']}"
        (application,) = self.config["applications"]
        application["args"] |= args
        for deployment in application["deployments"]:
            scaling = deployment.pop("autoscaling_config", None)
            deployment["num_replicas"] = 1
            if deployment["name"] == "TextEncoder":
                self.encoder, self.scaling = deployment, scaling
        self.encoder["ray_actor_options"] = encoder
        self.encoder["logging_config"] = {"enable_access_log": True, "log_level": "INFO"}

    def deploy(self, encoders: int) -> None:
        self.encoder["num_replicas"] = encoders
        self._deploy()

    def deploy_autoscaled(self, **changes: Any) -> None:
        """Let the policy of the file set the number of text encoders, with changed settings."""
        self.encoder.pop("num_replicas")
        self.encoder["autoscaling_config"] = self.scaling | changes
        self._deploy()

    def running(self) -> bool:
        """Whether the application takes requests."""
        return any(app["status"] == "RUNNING" for app in self._applications().values())

    def _deploy(self) -> None:
        for attempt in reversed(range(3)):  # Ray's server has its own limits on a busy machine
            answer = self.ray.put("/api/serve/applications/", json=self.config)
            if answer.status_code == 200:
                return
            assert attempt, answer.text

    def encoders(self) -> list[Replica]:
        """The text encoders that run, those that are about to end among them."""
        (application,) = self._applications().values()
        deployments = application["deployments"]
        replicas = deployments["TextEncoder"]["replicas"] if deployments else []
        return [
            Replica(each["replica_id"], each["node_id"], self.logs / each["log_file_path"][1:])
            for each in replicas
            if each["state"] == "RUNNING"
        ]

    def settled(self) -> bool:
        """Whether everything runs as it was last asked for."""
        (application,) = self._applications().values()
        assert application["status"] != "DEPLOY_FAILED", application["message"]
        asked: int = self.encoder["num_replicas"]
        return application["status"] == "RUNNING" and len(self.encoders()) == asked

    def _applications(self) -> dict[str, Any]:
        answer = self.ray.get("/api/serve/applications/").raise_for_status().json()
        found: dict[str, Any] = answer["applications"]
        return found
