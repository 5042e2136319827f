"""Promises of `serve/monitoring/`: dashboard, alerts and scrape configuration fit the metrics."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import yaml

from mla_ray.model.native import Native
from mla_ray.runtime.bundled import configurations
from mla_ray.serving.schemas import ProblemKind
from mla_ray.serving.settings import Settings
from tests.serving.app_server import NDJSON, PNG
from tests.serving.promql import used
from tests.support import ROOT
from tests.support.natives import MakePack
from tests.support.prometheus import Series, deployments, scraped_when

MONITORING = ROOT / "serve" / "monitoring"
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
ALERTS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
PROMTOOL = shutil.which("promtool")
PROMETHEUS: dict[str, Any] = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())


def queries() -> list[str]:
    """The expressions of all panels, with values for Grafana's variables."""
    targets = [target for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    values = {"$__rate_interval": "1m", "$application": "mla-ray"}
    expressions = [target["expr"] for target in targets]
    for variable, value in values.items():
        expressions = [expression.replace(variable, value) for expression in expressions]
    assert not [expression for expression in expressions if "$" in expression]
    return expressions


def needed() -> dict[str, set[str]]:
    """The metrics of dashboard and alerts, with the labels that they need."""
    found: dict[str, set[str]] = {}
    for expression in [*queries(), *(rule["expr"] for rule in ALERTS)]:
        for metric, labels in used(expression).items():
            found.setdefault(metric, set()).update(labels)
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            named = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"])
            assert named
            found.setdefault(named[1], set()).add(named[2])
    return found


def missing(series: Series) -> set[str]:
    """The metrics without a sample, and the labels that a sample of their metric lacks."""
    without_sample = needed().keys() - series.keys()
    return without_sample | {
        f"{metric}{{{label}}}"
        for metric, labels in needed().items()
        for label in labels
        if any(label not in found for found in series.get(metric, []))
    }


def test_panels_fill_the_rows_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len(taken) == 24 * (1 + max(y for _, y in taken))
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_each_panel_says_what_it_shows_and_takes_the_data_source_that_is_chosen() -> None:
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert len(panels) >= 12
    for panel in panels:
        assert panel["description"].endswith("."), panel["title"]
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert {source["uid"] for source in sources} == {"${datasource}"}


def test_each_alert_says_what_is_wrong_and_how_urgent_it_is() -> None:
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS) >= 6
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
        assert rule["annotations"]["summary"].endswith("."), rule["alert"]
        assert rule["annotations"]["description"].endswith("."), rule["alert"]


@pytest.mark.skipif(not PROMTOOL, reason="needs promtool: apt-get install prometheus")
def test_alerts_fire_in_the_cases_of_alert_cases_and_not_before(tmp_path: Path) -> None:
    """Without the annotations, which promtool would compare, too."""
    assert PROMTOOL
    subprocess.run([PROMTOOL, "check", "config", MONITORING / "prometheus.yaml"], check=True)
    rules = [{key: rule[key] for key in rule.keys() - {"annotations"}} for rule in ALERTS]
    (tmp_path / "alerts.yaml").write_text(
        yaml.safe_dump({"groups": [{"name": "mla-ray", "rules": rules}]})
    )
    cases = shutil.copy(Path(__file__).parent / "alert_cases.yaml", tmp_path)
    run = subprocess.run([PROMTOOL, "test", "rules", cases], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_each_alert_has_a_case_in_which_it_fires() -> None:
    cases = yaml.safe_load((Path(__file__).parent / "alert_cases.yaml").read_text())
    fired = {
        test["alertname"]
        for group in cases["tests"]
        for test in group["alert_rule_test"]
        if test["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in ALERTS}


def test_alerts_select_problems_that_there_are() -> None:
    kinds = {kind for rule in ALERTS for kind in re.findall(r'problem="([^"]*)"', rule["expr"])}
    assert kinds
    assert kinds <= set(ProblemKind)


def test_prometheus_loads_the_alerts_and_the_command_prints_both() -> None:
    assert PROMETHEUS["rule_files"] == ["alerts.yaml"]
    names = {name for name in configurations() if name.startswith("serve/monitoring/")}
    assert names == {
        f"serve/monitoring/{name}" for name in ("alerts.yaml", "dashboard.json", "prometheus.yaml")
    }


@dataclass
class Scaled:
    """The deployments of `serve/config.yaml`."""

    url: str
    process: subprocess.Popen[str]
    scratch: Path

    def targets(self) -> list[str]:
        """What Prometheus scrapes: Ray's file is where prometheus.yaml expects it."""
        (job,) = PROMETHEUS["scrape_configs"]
        (path,) = job["file_sd_configs"][0]["files"]
        groups = [
            group
            for file in self.scratch.glob(f"mla-ray-*/{Path(path).name}")
            for group in json.loads(file.read_text())
        ]
        return [target for group in groups for target in group["targets"]]

    def replica(self, deployment: str) -> psutil.Process:
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):  # it has just ended
                if child.cmdline()[:1] == [f"ray::ServeReplica:mla-ray:{deployment}"]:
                    return child
        raise AssertionError(f"no replica of {deployment}")


@pytest.fixture
def scaled(tmp_path: Path, native_folder: Path, make_pack: MakePack) -> Iterator[Scaled]:
    pack = make_pack("de")
    fingerprint = Native.load(str(native_folder)).fingerprint
    pack.card = pack.card.model_copy(update={"fingerprint": fingerprint})
    pack.save(tmp_path / "packs" / "de")
    settings = Settings(
        native=str(native_folder), packs=str(tmp_path / "packs"), index=f"edge:{tmp_path / 'index'}"
    )
    with tempfile.TemporaryDirectory(prefix="mla-", dir="/tmp") as scratch:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.serving.scaled_server", settings.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"RAY_TMPDIR": scratch},
        )
        with process:
            assert process.stdout
            url = process.stdout.readline().strip()
            assert url, f"the server ended with {process.wait()}"
            yield Scaled(url, process, Path(scratch))
            assert process.stdin
            process.stdin.close()
            assert process.wait(120) == 0


@pytest.mark.slow
def test_dashboard_and_alerts_use_metrics_that_all_replicas_export(
    scaled: Scaled, pngs: list[bytes]
) -> None:
    with httpx2.Client(base_url=scaled.url, timeout=60) as client:
        for _ in range(3):
            for language in ("de", "en", "xx"):
                client.get("/v1/search", params={"q": "Geheimnis", "language": language})
        client.put("/v1/images/geheim", content=pngs[0], headers=PNG)
        client.post("/v1/search/image", content=pngs[0], headers=PNG)
        line = {"image_id": "geheim", "language": "de", "caption": "ein Geheimnis"}
        client.post("/v1/captions", content=json.dumps(line), headers=NDJSON)

    waits, failures = "ray_mla_wait_seconds_count", "ray_serve_health_check_failures_total"
    engines = {"TextEncoder", "ImageEncoder", "Index"}
    series, pages = scraped_when(
        scaled.targets,
        lambda series: missing(series) <= {failures} and deployments(series, waits) == engines,
    )
    assert missing(series) <= {failures}
    assert deployments(series, waits) == engines
    assert deployments(series, "ray_mla_items_total") == engines
    assert deployments(series, "ray_mla_http_requests_total") == {"Ingress"}
    assert deployments(series, "ray_serve_deployment_replica_healthy") == {*engines, "Ingress"}
    assert {labels["language"] for labels in series["ray_mla_texts_encoded_total"]} == {"de", "en"}
    assert "geheim" not in pages.lower()

    scaled.replica("ImageEncoder").send_signal(signal.SIGKILL)
    series, _ = scraped_when(scaled.targets, lambda series: not missing(series))
    assert missing(series) == set()
