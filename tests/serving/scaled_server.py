"""The deployments of `serve/config.yaml` on a private Ray, until the standard input ends.

The argument is the settings as JSON. The output is the URL of the server.
"""

import sys

import yaml

from mla_ray.runtime.cluster import free_port, ray_session
from mla_ray.serving.local import running, scratch_environment
from mla_ray.serving.settings import Settings
from tests.support import ROOT


def main() -> None:
    settings = Settings.model_validate_json(sys.argv[1])
    (application,) = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())["applications"]
    options = {deployment.pop("name"): deployment for deployment in application["deployments"]}
    serving = running(settings, port=free_port(), options=options, shut_down=False)
    # The dashboard's server writes the file in which Prometheus finds the nodes.
    with scratch_environment(), ray_session(cpus=4, dashboard=True), serving as url:
        print(url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
