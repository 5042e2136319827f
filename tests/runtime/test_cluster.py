"""Promises of the private Ray that commands start."""

import os

from mla_ray.runtime.cluster import DASHBOARD


def test_its_processes_know_their_own_dashboard_and_nobody_else_does(ray_cluster: None) -> None:
    """With a second Ray on the machine, one that looks for it does not find it."""
    import ray

    @ray.remote(num_cpus=0)
    def told() -> str | None:
        return os.environ.get(DASHBOARD)

    running = ray.init(ignore_reinit_error=True)  # what runs already, described
    dashboard = ray.get(told.remote())
    assert dashboard is not None
    assert dashboard.removeprefix("http://") == running.address_info["webui_url"]
    assert DASHBOARD not in os.environ
