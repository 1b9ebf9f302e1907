"""The files of cluster/ are what their readers take: unknown fields and what KubeRay refuses are errors."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.unit

CLUSTER = REPOSITORY / "cluster"
KUBERAY = CLUSTER / "kuberay"
SCHEMAS = REPOSITORY.parent / "shared" / "kuberay"
JOBS = ("preprocess", "train", "tune", "tag")
OVERLAYS = ("dev", "gpu")

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


def job(name: str) -> dict[str, Any]:
    return yaml.safe_load((KUBERAY / "jobs" / f"{name}.yaml").read_text())


def built(overlay: str) -> list[dict[str, Any]]:
    command = ["kubectl", "kustomize", str(KUBERAY / "overlays" / overlay)]
    told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert told.returncode == 0, told.stderr
    assert "deprecated" not in told.stderr.lower(), told.stderr
    return list(yaml.safe_load_all(told.stdout))


def validate(manifest: dict[str, Any]) -> None:
    import jsonschema

    path = SCHEMAS / f"{manifest['kind']}.v1.schema.json"
    if not path.exists():
        pytest.skip("no schemas to validate with: ../shared/kuberay is not there")
    assert manifest["apiVersion"] == "ray.io/v1"
    jsonschema.Draft7Validator(json.loads(path.read_text())).validate(manifest)
    for spec in clusters(manifest):
        as_kuberay_wants_it(spec)


def clusters(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if manifest["kind"] == "RayCluster":
        yield manifest["spec"]
    if manifest["kind"] == "RayService":
        yield manifest["spec"]["rayClusterConfig"]


def as_kuberay_wants_it(spec: dict[str, Any]) -> None:
    """What the operator refuses beyond the schema, and what every cluster of ours promises."""
    assert spec["authOptions"]["mode"] == "token"
    assert spec["rayVersion"] == pinned("ray")
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    pods = [spec["headGroupSpec"]["template"]["spec"]]
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["maxReplicas"]
        assert group["template"]["spec"]["restartPolicy"] == "Never"  # autoscaler v2 wants it
        pods.append(group["template"]["spec"])
    for pod in pods:
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert {"name": "shared-memory", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert [volume["name"] for volume in pod["volumes"]] == ["shared-memory"]
        assert {"secretRef": {"name": "sigrl-store", "optional": True}} in container["envFrom"]
        wants_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        assert container["image"].endswith(":gpu" if wants_gpu else ":cpu")
        assert wants_gpu == ("tolerations" in pod)


def pinned(package: str) -> str:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{package}=="))


@pytest.mark.parametrize("name", ["base/cluster.yaml", "serve/serve.yaml"])
def test_clusters(name: str) -> None:
    validate(yaml.safe_load((KUBERAY / name).read_text()))


@pytest.mark.parametrize("name", JOBS)
def test_jobs(name: str) -> None:
    manifest = job(name)
    validate(manifest)
    spec = manifest["spec"]
    assert spec["clusterSelector"] == {"ray.io/cluster": "sigrl"}
    assert set(spec) == {"clusterSelector", "entrypoint"}  # KubeRay refuses retries and deadlines on a cluster selected
    words = shlex.split(spec["entrypoint"])
    assert words[:2] == ["python", f"pipelines/{name}.py"]
    assert (REPOSITORY / words[1]).exists()


def test_a_misspelt_field_is_found() -> None:
    import jsonschema

    manifest = yaml.safe_load((KUBERAY / "base" / "cluster.yaml").read_text())
    manifest["spec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        validate(manifest)


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays(overlay: str) -> None:
    manifests, served = built(overlay), built(f"{overlay}/serve")
    assert sorted(manifest["kind"] for manifest in manifests) == ["ConfigMap", "Namespace", "RayCluster"]
    assert [manifest["kind"] for manifest in served] == ["RayService"]
    for manifest in [*manifests, *served]:
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == "sigrl"
        if manifest["kind"].startswith("Ray"):
            validate(manifest)
            (spec,) = clusters(manifest)
            groups = [group["template"]["spec"]["containers"][0]["image"] for group in spec["workerGroupSpecs"]]
            assert any(image.endswith(":gpu") for image in groups) == (overlay == "gpu")


def applications() -> list[tuple[str, dict[str, Any]]]:
    """All that are served by files of cluster/, and where each is written."""
    found = [("serve.yaml", yaml.safe_load((CLUSTER / "serve.yaml").read_text()))]
    for path in (KUBERAY / "serve" / "serve.yaml", KUBERAY / "overlays" / "gpu" / "serve" / "config.yaml"):
        found.append((path.name, yaml.safe_load(yaml.safe_load(path.read_text())["spec"]["serveConfigV2"])))
    return [(name, application) for name, told in found for application in told["applications"]]


@pytest.mark.parametrize(("name", "application"), applications())
def test_what_is_served(name: str, application: dict[str, Any]) -> None:
    """Serve's own schema, and ours of the arguments: a field that does not exist is an error."""
    from ray.serve.schema import ServeApplicationSchema

    from sigrl_core.on_ray.serve import Arguments

    ServeApplicationSchema(**application)
    Arguments(**application["args"])


def test_arguments_of_a_serve_file(capsys: pytest.CaptureFixture[str]) -> None:
    """Objects from serve.py; names of version 0.1.0 from a file."""
    from sigrl_core.config import Replicas, ServeConfig
    from sigrl_core.on_ray.serve import Arguments

    expected = ServeConfig(checkpoint="c", allow_anonymous=True), Replicas(min_replicas=2, max_replicas=3)
    arguments = Arguments(config=expected[0], replicas=expected[1])
    assert (arguments.config, arguments.replicas) == expected
    assert capsys.readouterr().err == ""
    old = {"config": {"checkpoint": "c", "open_to_everyone": True}, "replicas": {"least": 2, "most": 3}}
    arguments = Arguments.model_validate(old)
    assert (arguments.config, arguments.replicas) == expected
    assert capsys.readouterr().err.splitlines() == [
        "Serve file: config.open_to_everyone is deprecated; use config.allow_anonymous",
        "Serve file: replicas.least is deprecated; use replicas.min_replicas",
        "Serve file: replicas.most is deprecated; use replicas.max_replicas",
    ]


def test_ray_up() -> None:
    """By Ray's own schema, which an unknown field fails."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((CLUSTER / "ray-up.yaml").read_text())
    validate_config(prepare_config(config))
    for name, kind in config["available_node_types"].items():
        spot = kind["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        assert spot == (name != config["head_node_type"])
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config({**config, "max_worker": 3}))


def test_the_image() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is not installed (it comes with the dev extra)")
    command = [str(hadolint), "--no-color", str(CLUSTER / "Dockerfile")]
    told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert told.returncode == 0, told.stdout + told.stderr
    stages = [line.split() for line in (CLUSTER / "Dockerfile").read_text().splitlines() if line.startswith("FROM")]
    assert {stage[-1] for stage in stages} >= {"cpu", "gpu"}
    copied = ("constraints.txt", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "sigrl_core", "pipelines")
    taken = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert {f"!{name}" for name in copied} == {line for line in taken if line.startswith("!")}


def test_the_commands_of_the_readme_name_what_is_there() -> None:
    """What is applied is checked above; what needs a registry or Kubernetes cannot run here."""
    stages = re.findall(r"^FROM .* AS (\S+)$", (CLUSTER / "Dockerfile").read_text(), re.M)
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", (CLUSTER / "README.md").read_text(), re.M | re.S)
    named = dict[str, set[str]]()
    for line in "".join(blocks).splitlines():
        words = shlex.split(line)
        for flag, value in itertools.pairwise(words):
            named.setdefault(f"{words[0]} {flag}", set()).add(value)
    assert named["docker --target"] == {"cpu", "gpu"} <= set(stages)
    assert named["docker --file"] == {"cluster/Dockerfile"}
    assert all((REPOSITORY / folder / "kustomization.yaml").exists() for folder in named["kubectl -k"])
    assert all((REPOSITORY / file).exists() for file in named["kubectl -f"] - {"-l"})  # logs -f -l


def test_the_table_of_scaling_is_what_the_model_says() -> None:
    told = subprocess.run([sys.executable, str(CLUSTER / "scaling.py")], capture_output=True, text=True, check=True)
    assert told.stdout.strip() in (REPOSITORY / "docs" / "SCALING.md").read_text()
    dearer = [sys.executable, str(CLUSTER / "scaling.py"), "--gpu-hour", "25"]
    assert subprocess.run(dearer, capture_output=True, text=True, check=True).stdout != told.stdout
