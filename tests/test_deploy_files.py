"""What no machine here can run is held against the schemas and the code that will read it.

`ray_cluster.yaml` goes through Ray's own validation and autoscaler, and its node provider against a
mocked AWS; the manifests in `kuberay/` through Kubernetes' schemas, those of KubeRay
(tests/schemas/kuberay.json says whence) and Ray's own reading of them; the Dockerfile is compared
with what it copies and pins. Nothing here starts Ray.
"""

import copy
import json
import re
import time
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

import boto3
import jsonschema
import kubernetes_validate
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig, InstanceReconcileConfig
from ray.autoscaler.v2.instance_manager.instance_manager import InstanceManager
from ray.autoscaler.v2.instance_manager.instance_storage import InstanceStorage
from ray.autoscaler.v2.instance_manager.node_provider import CloudInstance, LaunchNodeError
from ray.autoscaler.v2.instance_manager.reconciler import Reconciler
from ray.autoscaler.v2.instance_manager.storage import InMemoryStorage
from ray.autoscaler.v2.instance_manager.subscribers.cloud_instance_updater import (
    CloudInstanceUpdater,
)
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import (
    CloudResourceMonitor,
)
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler
from ray.core.generated.autoscaler_pb2 import (
    ClusterResourceState,
    NodeState,
    NodeStatus,
    ResourceRequest,
    ResourceRequestByCount,
)
from ray.core.generated.instance_manager_pb2 import NodeKind
from ray.serve.schema import ServeDeploySchema
from referencing import Registry, Resource

from mla_ray.cli.job import JOBS
from mla_ray.runtime.bundled import configurations
from mla_ray.serving.settings import LOOPBACK, Settings
from tests.support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMAGE = f"mla-ray:{PROJECT['version']}"
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
KUBERNETES = "1.37"
RESOURCES = ("raycluster", "rayjob", "rayservice")


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "kuberay" / f"{name}.yaml").read_text()))


def manifest(name: str) -> dict[str, Any]:
    (document,) = documents(name)
    return document


def ray_cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())


def cluster_spec(document: dict[str, Any]) -> dict[str, Any]:
    """The part of a manifest that is a Ray cluster."""
    spec = document["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def pods(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cluster = cluster_spec(document)
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        yield group["template"]["spec"]
    if submitter := document["spec"].get("submitterPodTemplate"):
        yield submitter["spec"]


# Ray's own autoscaler, with a cloud that we play


class Cloud:
    """Gives out machines, but none of a type that it `refuses`; those that `hang` never come up."""

    def __init__(self, refuses: str = "", hangs: str = "") -> None:
        self.refuses, self.hangs = refuses, hangs
        self.asked: list[str] = []
        self.errors: list[LaunchNodeError] = []
        self.machines = {"head": CloudInstance("head", "head", NodeKind.HEAD, True, None)}

    def launch(self, shape: dict[str, int], request_id: str) -> None:
        for kind, count in shape.items():
            self.asked += [kind] * count
            if kind == self.refuses:
                why = "InsufficientInstanceCapacity"
                error = LaunchNodeError(kind, count, request_id, time.time_ns(), why)
                self.errors.append(error)
                continue
            for _ in range(count):
                name = f"{kind}-{len(self.asked)}-{len(self.machines)}"
                runs = kind != self.hangs
                self.machines[name] = CloudInstance(name, kind, NodeKind.WORKER, runs, request_id)

    def terminate(self, ids: list[str], request_id: str) -> None:
        for name in ids:
            self.machines.pop(name, None)

    def poll_errors(self) -> list[LaunchNodeError]:
        errors, self.errors = self.errors, []
        return errors


class Patience(AutoscalingConfig):
    seconds = 3600  # for a machine to come up

    def get_instance_reconcile_config(self) -> InstanceReconcileConfig:
        return InstanceReconcileConfig(allocate_status_timeout_s=self.seconds)


def asked_for(config: dict[str, Any], cloud: Cloud, workers: int, rounds: int = 8) -> list[str]:
    """Worker types in the order in which the autoscaler asks for them, a GPU each being wanted.

    Its patience with a machine that hangs ends with its next look.
    """
    head = config["head_node_type"]
    cloud.machines["head"] = CloudInstance("head", head, NodeKind.HEAD, True, None)
    autoscaling = Patience(copy.deepcopy(config), skip_content_hash=True)
    monitor = CloudResourceMonitor()
    storage = InstanceStorage("cluster", InMemoryStorage())
    manager = InstanceManager(storage, [CloudInstanceUpdater(cloud), monitor])
    node = NodeState(
        node_id=b"head", instance_id="head", ray_node_type_name=head, status=NodeStatus.RUNNING
    )
    request = ResourceRequest(resources_bundle={"CPU": 1, "GPU": 1})
    for version in range(1, rounds + 1):
        if cloud.hangs and cloud.asked:
            autoscaling.seconds = 0
        state = ClusterResourceState(
            cluster_resource_state_version=version,
            node_states=[node] if version > 1 else [],  # first the machine, then Ray on it
            pending_resource_requests=[ResourceRequestByCount(request=request, count=workers)],
        )
        Reconciler.reconcile(
            manager,
            ResourceDemandScheduler(),
            cloud,
            monitor,
            state,
            dict(cloud.machines),
            autoscaling,
            cloud.poll_errors(),
        )
    return cloud.asked


# ray_cluster.yaml


def aws() -> dict[str, Any]:
    config = prepare_config(ray_cluster())
    validate_config(config)
    return config


def test_ray_takes_the_cluster_file() -> None:
    types = aws()["available_node_types"]
    assert set(types) == {"head", "gpu-spot", "gpu-ondemand"}


@pytest.mark.parametrize(
    ("key", "value"),
    [("idle_timeout_minuts", 5), ("max_workers", "4"), ("head_node_type", "hed")],
)
def test_ray_refuses_a_cluster_file_with_a_fault(key: str, value: Any) -> None:
    config = ray_cluster() | {key: value}
    with pytest.raises((ValueError, jsonschema.ValidationError)):
        validate_config(prepare_config(config))


def test_workers_come_from_zero_and_go_when_idle() -> None:
    config = aws()
    workers = [t for name, t in config["available_node_types"].items() if name != "head"]
    assert all(worker["min_workers"] == 0 for worker in workers)
    assert all(0 < worker["max_workers"] <= config["max_workers"] for worker in workers)
    assert 0 < config["idle_timeout_minutes"] <= 10
    assert config["provider"]["cache_stopped_nodes"] is False  # a stopped one's disk is billed


def test_the_fallback_is_the_spot_machine_without_spot() -> None:
    types = aws()["available_node_types"]
    spot, ondemand = types["gpu-spot"], types["gpu-ondemand"]
    node = dict(spot["node_config"])
    assert node.pop("InstanceMarketOptions")["MarketType"] == "spot"
    assert node == ondemand["node_config"]
    assert spot["resources"] == ondemand["resources"]
    assert spot["resources"]["GPU"] > 0
    assert spot["priority"] > ondemand["priority"]


def test_no_training_on_the_head() -> None:
    config = aws()
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0, "GPU": 0}
    (start,) = [c for c in config["head_start_ray_commands"] if "ray start" in c]
    assert {"--num-cpus=0", "--num-gpus=0"} <= set(start.split())


def test_nothing_is_open_to_the_world() -> None:
    config = aws()
    (start,) = [c for c in config["head_start_ray_commands"] if "ray start" in c]
    assert "--dashboard-host=127.0.0.1" in start.split()
    assert not re.search(r"\b0\.0\.0\.0\b|::/0", json.dumps(config))
    # Ray adds port 22 from everywhere to any group of its own making, and makes one for each type
    # of node that names none; likewise a role with all of EC2 and S3 for the head.
    assert "security_group" not in config["provider"]
    for node in config["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"]
        assert node["node_config"]["IamInstanceProfile"]
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in node["node_config"]["BlockDeviceMappings"])


@mock_aws
def test_machines_start_on_a_mocked_aws_with_the_group_and_roles_given_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = aws()
    monkeypatch.setenv("HOME", str(tmp_path))  # for the key pair
    monkeypatch.setenv("AWS_DEFAULT_REGION", config["provider"]["region"])
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "mocked")
    (tmp_path / ".ssh").mkdir()
    ec2, iam = boto3.resource("ec2"), boto3.client("iam")
    (vpc,) = ec2.vpcs.all()
    group = ec2.create_security_group(GroupName="mla-ray", Description="-", VpcId=vpc.id).id
    groups = {found.id for found in ec2.security_groups.all()}
    types = config["available_node_types"]
    for kind in types.values():
        kind["node_config"]["SecurityGroupIds"] = [group]
    for profile in {kind["node_config"]["IamInstanceProfile"]["Name"] for kind in types.values()}:
        iam.create_instance_profile(InstanceProfileName=profile)

    config = bootstrap_aws(config)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    started = {}
    for name, kind in config["available_node_types"].items():
        tags = {TAG_RAY_NODE_KIND: "worker", TAG_RAY_USER_NODE_TYPE: name}
        (started[name],) = provider.create_node(kind["node_config"], tags, 1).values()

    assert {name: machine.instance_lifecycle for name, machine in started.items()} == {
        "head": None,
        "gpu-spot": "spot",
        "gpu-ondemand": None,
    }
    for name, machine in started.items():
        assert [found["GroupId"] for found in machine.security_groups] == [group]
        role = "mla-ray-head" if name == "head" else "mla-ray-worker"
        assert machine.iam_instance_profile["Arn"].endswith(f"/{role}")
    assert {found.id for found in ec2.security_groups.all()} == groups
    assert iam.list_roles()["Roles"] == []


def test_the_token_is_a_file_that_is_mounted_and_no_secret_is_written_down() -> None:
    config = aws()
    variables = dict(
        option.removeprefix("-e ").split("=")
        for option in config["docker"]["run_options"]
        if option.startswith("-e ")
    )
    assert variables.pop("RAY_AUTH_MODE") == "token"
    token = Path(variables.pop("RAY_AUTH_TOKEN_PATH"))
    assert str(token.parent) in config["file_mounts"]
    assert not variables


def test_spot_comes_first_and_on_demand_when_spot_is_full() -> None:
    config = aws()
    assert asked_for(config, Cloud(), workers=3) == ["gpu-spot"] * 3
    config["available_node_types"]["gpu-spot"]["max_workers"] = 2
    assert sorted(asked_for(config, Cloud(), workers=3)) == ["gpu-ondemand"] + ["gpu-spot"] * 2


def test_a_refused_spot_launch_needs_the_hand_that_the_cluster_file_tells_of() -> None:
    """Should Ray learn to fall back by itself, this fails, and the advice can go."""
    config = aws()
    assert set(asked_for(config, Cloud(refuses="gpu-spot"), workers=1)) == {"gpu-spot"}
    config["available_node_types"]["gpu-ondemand"]["priority"] = 20
    assert asked_for(config, Cloud(refuses="gpu-spot"), workers=2) == ["gpu-ondemand"] * 2


# kuberay/


@cache
def kuberay_schemas() -> Registry[Any]:
    folder = resources.files("kubernetes_validate") / "kubernetes-json-schema"
    of_kubernetes = folder / f"v{KUBERNETES}.0-local-strict" / "_definitions.json"
    schemas = [of_kubernetes.read_text(), (ROOT / "tests/schemas/kuberay.json").read_text()]
    return [Resource.from_contents(json.loads(schema)) for schema in schemas] @ Registry()


def validate(document: dict[str, Any]) -> None:
    if document["apiVersion"] != "ray.io/v1":
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    schema = {"$ref": f"https://kubernetes.io/api/kuberay.json#/$defs/{document['kind']}"}
    jsonschema.Draft202012Validator(schema, registry=kuberay_schemas()).validate(document)


@pytest.mark.parametrize("name", ["base", *RESOURCES])
def test_kubernetes_and_kuberay_take_the_manifests(name: str) -> None:
    for document in documents(name):
        validate(document)
        assert (document["metadata"].get("namespace") or document["metadata"]["name"]) == "mla-ray"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.enableInTreeAutoscalling", True),
        ("spec.autoscalerOptions.idleTimeoutSeconds", "300"),
        ("spec.workerGroupSpecs.0.minReplica", 0),
        ("spec.workerGroupSpecs.0.template.spec.tolerations.0.effect", ["NoSchedule"]),
        ("spec.headGroupSpec.template.spec.containers.0.imag", IMAGE),
        ("spec.headGroupSpec.rayStartParams.num-cpus", 0),
    ],
)
def test_a_fault_in_a_manifest_is_found(path: str, value: Any) -> None:
    document = manifest("raycluster")
    *way, last = path.split(".")
    at: Any = document
    for step in way:
        at = at[int(step)] if isinstance(at, list) else at[step]
    at[last] = value
    with pytest.raises(jsonschema.ValidationError):
        validate(document)


def autoscaling(name: str) -> dict[str, Any]:
    """As Ray's autoscaler reads the manifest."""
    metadata = {"name": "mla-ray", "namespace": "mla-ray"}
    return _derive_autoscaling_config_from_ray_cr(
        {"metadata": metadata, "spec": cluster_spec(manifest(name))}
    )


@pytest.mark.parametrize("name", RESOURCES)
def test_rays_autoscaler_reads_the_cluster_and_finds_a_head_without_work(name: str) -> None:
    spec, config = cluster_spec(manifest(name)), autoscaling(name)
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert 0 < config["idle_timeout_minutes"] <= 10
    head = config["available_node_types"]["headgroup"]["resources"]
    assert (head["CPU"], head["GPU"]) == (0, 0)


def test_gpu_workers_of_pods_come_from_zero_spot_first() -> None:
    types = autoscaling("raycluster")["available_node_types"]
    spot, ondemand = types["gpu-spot"], types["gpu-ondemand"]
    assert spot["resources"] == ondemand["resources"]
    assert spot["resources"]["GPU"] == 1
    assert spot["min_workers"] == ondemand["min_workers"] == 0
    assert asked_for(autoscaling("raycluster"), Cloud(), workers=2) == ["gpu-spot"] * 2


def test_pods_that_find_no_spot_machine_are_replaced_on_demand() -> None:
    asked = asked_for(autoscaling("raycluster"), Cloud(hangs="gpu-spot"), workers=1)
    assert asked[:2] == ["gpu-spot", "gpu-ondemand"]
    (variable,) = [
        variable["value"]
        for variable in manifest("raycluster")["spec"]["autoscalerOptions"]["env"]
        if variable["name"] == "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S"
    ]
    assert 300 <= int(variable) < InstanceReconcileConfig().allocate_status_timeout_s


def test_a_job_brings_the_same_cluster_and_takes_it_away() -> None:
    job = manifest("rayjob")["spec"]
    assert job["rayClusterSpec"] == manifest("raycluster")["spec"]
    assert job["shutdownAfterJobFinishes"] is True
    assert job["activeDeadlineSeconds"] > 0


def test_the_job_is_one_that_the_image_has() -> None:
    entrypoint = manifest("rayjob")["spec"]["entrypoint"]
    name, config = re.match(r"mla job (\w+) --config (\S+) ", entrypoint).groups()  # type: ignore[union-attr]
    assert name in JOBS
    assert config in configurations()
    assert re.search(r" --run s3://\S+ --data s3://\S+$", entrypoint)


@pytest.mark.parametrize("name", RESOURCES)
def test_pods_have_no_rights_and_bounded_resources(name: str) -> None:
    document = manifest(name)
    containers = [cluster_spec(document)["autoscalerOptions"]]
    for pod in pods(document):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        if pod.get("serviceAccountName") != "mla-ray-head":  # the autoscaler is there
            assert pod["automountServiceAccountToken"] is False
        containers += pod["containers"]
    for container in containers:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        requests, limits = (container["resources"][part] for part in ("requests", "limits"))
        assert set(requests) == set(limits) >= {"cpu", "memory"}


@pytest.mark.parametrize("name", RESOURCES)
def test_secrets_of_pods_come_from_the_secret(name: str) -> None:
    document = manifest(name)
    assert cluster_spec(document)["authOptions"] == {"mode": "token", "secretName": "mla-ray"}
    ray_pods = [pod for pod in pods(document) if "serviceAccountName" in pod]
    for pod in ray_pods:
        (container,) = pod["containers"]
        for variable in container["env"]:
            assert variable["valueFrom"]["secretKeyRef"]["name"] == "mla-ray"
            assert variable["valueFrom"]["secretKeyRef"]["key"] == variable["name"]
        assert {v["name"] for v in container["env"]} >= {"MLA_API_TOKEN", "QDRANT_API_KEY"}


def test_accounts_exist_and_only_the_namespace_gets_in() -> None:
    base = {(d["kind"], d["metadata"]["name"]): d for d in documents("base")}
    used = {
        account
        for name in RESOURCES
        for pod in pods(manifest(name))
        if (account := pod.get("serviceAccountName"))
    }
    assert used == {name for kind, name in base if kind == "ServiceAccount"}
    policy = base["NetworkPolicy", "mla-ray"]["spec"]
    assert policy["podSelector"] == {}
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["ingress"] == [{"from": [{"podSelector": {}}]}]


# Serving


def serve_configs() -> tuple[ServeDeploySchema, ServeDeploySchema]:
    here = yaml.safe_load((ROOT / "serve/config.yaml").read_text())
    there = yaml.safe_load(manifest("rayservice")["spec"]["serveConfigV2"])
    return ServeDeploySchema.model_validate(here), ServeDeploySchema.model_validate(there)


def test_the_service_is_that_of_the_serve_config() -> None:
    here, there = serve_configs()
    (ours,), (theirs,) = here.applications, there.applications
    assert theirs.import_path == ours.import_path == "mla_ray.serving.deployments:build"
    assert (theirs.name, theirs.route_prefix) == (ours.name, ours.route_prefix)
    assert theirs.deployments == ours.deployments
    assert there.logging_config == here.logging_config
    assert there.http_options.port == here.http_options.port
    # Where things lie differs, and nothing else.
    places = {"packs", "index", "pictures", "hosts"}
    assert {k: v for k, v in theirs.args.items() if k not in places} == {
        k: v for k, v in ours.args.items() if k not in places
    }


def test_the_service_answers_to_its_names_and_asks_for_a_token() -> None:
    _, there = serve_configs()
    (application,) = there.applications
    settings = Settings.model_validate(application.args)
    service = f"{manifest('rayservice')['metadata']['name']}-serve-svc"
    assert {service, f"{service}.mla-ray.svc.cluster.local", "localhost"} <= set(settings.hosts)
    assert "*" not in settings.hosts
    assert not set(settings.hosts) <= set(LOOPBACK)  # so a replica without a token will not start
    for pod in pods(manifest("rayservice")):
        (token,) = [v for v in pod["containers"][0]["env"] if v["name"] == "MLA_API_TOKEN"]
        assert not token["valueFrom"]["secretKeyRef"].get("optional")


# The image


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's, each on one line."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def image_environment() -> dict[str, str]:
    pairs = [rest.split() for word, rest in instructions() if word == "ENV"]
    return dict(pair.split("=", 1) for several in pairs for pair in several)


def test_one_image_of_one_version_everywhere() -> None:
    found = {ray_cluster()["docker"]["image"]}
    for name in RESOURCES:
        document = manifest(name)
        found |= {c["image"] for pod in pods(document) for c in pod["containers"]}
        assert cluster_spec(document)["rayVersion"] == PINS["ray"]
    assert found == {IMAGE}
    texts = [*(ROOT / "kuberay").iterdir(), *(ROOT / "docs").glob("*.md"), ROOT / "Dockerfile"]
    for text in texts:
        assert set(re.findall(r"\bmla-ray:\d[\w.]*\d", text.read_text())) <= {IMAGE}, text


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    ignore = (ROOT / ".dockerignore").read_text().split("\n")
    kept = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    copies = [rest.split() for word, rest in instructions() if word == "COPY"]
    sources = {source for *paths, _ in copies for source in paths}
    assert "*" in ignore
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] in kept, source
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wheel = packages["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], *PROJECT["license-files"]}
    copied = [PurePosixPath(source) for source in sources]
    for path in needed | {PROJECT["readme"]}:
        assert any(PurePosixPath(path).is_relative_to(source) for source in copied), path


def test_the_image_installs_what_is_pinned() -> None:
    installs = [rest for word, rest in instructions() if word == "RUN" and "pip install" in rest]
    torch, package = installs
    pinned = re.search(r"grep -E '(\S+)' ", torch).group(1)  # type: ignore[union-attr]
    lines = (ROOT / "constraints.txt").read_text().split()
    assert [line.split("==")[0] for line in lines if re.search(pinned, line)] == [
        "torch",
        "torchvision",
    ]
    assert "--constraint /opt/mla-ray/constraints.txt" in package
    assert all("--no-cache-dir" in install for install in installs)
    extras = set(re.search(r"\.whl\)\[([\w,]+)\]", package).group(1).split(","))  # type: ignore[union-attr]
    assert "s3" in extras <= set(PROJECT["optional-dependencies"])
    assert {"ray", "s3fs", "mlflow-skinny"} <= set(PINS)
    beside = package.split('"')[-1].split()
    assert beside
    assert all(name in PINS or re.fullmatch(r"[\w-]+==[\d.]+", name) for name in beside)


def test_the_image_is_of_a_fixed_base_and_not_roots() -> None:
    words = instructions()
    (base,) = [rest for word, rest in words if word == "ARG"]
    assert re.fullmatch(r"BASE=python:3\.11\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", base)
    assert all(rest.startswith("${BASE}") for word, rest in words if word == "FROM")
    assert [rest for word, rest in words if word == "USER"] == ["1000:1000"]
    assert words[-2][0] == "USER"
    # Login shells of Debian look in /usr/local/bin, and in no virtual environment.
    assert not any("venv" in rest for _, rest in words)


def test_the_image_has_rays_environment_and_no_secret() -> None:
    environment = image_environment()
    ours = (ROOT / "mla_ray/runtime/cluster.py").read_text()
    drivers = dict(re.findall(r'setdefault\("(RAY_\w+)", "([\w.]+)"\)', ours))
    assert drivers
    del drivers["RAY_BACKEND_LOG_LEVEL"]  # on a cluster its log is wanted
    assert drivers.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") == "0"  # loopback alone: not there
    assert environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "1"
    told = dict(re.findall(r"\b(RAY_\w+)=(\w+)", (ROOT / "docs/serving.md").read_text()))
    assert len(told) >= 5
    for name, value in (drivers | told).items():
        assert environment[name] == value
    assert not [name for name in environment if re.search("TOKEN|KEY|SECRET|PASSWORD", name)]
