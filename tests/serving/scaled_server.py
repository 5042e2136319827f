"""The application with the deployments of `serve/config.yaml` on a private Ray, until stdin ends.

Arguments: the settings as JSON. Writes a line of JSON with the URL of the application, the URL of
the node's metrics, and the file by which Prometheus finds that URL.
"""

import json
import sys
from pathlib import Path

import yaml

from mla_ray.runtime.cluster import free_port, ray_session
from mla_ray.serving.local import running, scratch_environment
from mla_ray.serving.settings import Settings

CONFIG = Path(__file__).parents[2] / "serve" / "config.yaml"


def main() -> None:
    settings = Settings.model_validate_json(sys.argv[1])
    (application,) = yaml.safe_load(CONFIG.read_text())["applications"]
    options = {deployment.pop("name"): deployment for deployment in application["deployments"]}
    with (
        scratch_environment(),
        ray_session(cpus=4, dashboard=True),
        running(settings, port=free_port(), options=options) as url,
    ):
        import ray

        (node,) = ray.nodes()
        metrics = f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
        print(json.dumps({"url": url, "metrics": metrics}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
