"""`ray job submit` of the commands of cluster/kuberay/jobs to a cluster that asks for a token.

The code travels, the loss curve is the same.
"""

import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest
import requests
import yaml

from sigrl_core.data.shards import ShardFolder
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.model.checkpoint import checkpoint_version
from sigrl_core.serving.client import Client, ServerError
from sigrl_core.serving.keys import add_key
from tests.conftest import REPOSITORY, untrained_checkpoint, without_clock
from tests.drawn import write_drawn
from tests.in_process import call
from tests.processes import activated, family, free_ports, until

pytestmark = pytest.mark.e2e

RAY = Path(sys.executable).with_name("ray")
TOLERANCE = 1e-6
"""Of losses, relative: two workers each, so even the order of sums is the same."""


class Cluster(NamedTuple):
    """A running cluster: where it keeps its files, and the environment a client needs."""

    folder: Path
    environment: dict[str, str]


def environment_with(token: Path, dashboard: int) -> dict[str, str]:
    """Of a cluster's nodes and of who submits jobs to it; the token is made here."""
    token.write_text(secrets.token_hex(32))
    return {
        **{name: value for name, value in activated().items() if name != "PYTHONPATH"},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """A one-node cluster with token authentication, whose `python` has the project's dependencies."""
    token = tmp_path_factory.mktemp("token") / "token"
    gcs, dashboard, client, agent = free_ports(4)
    environment = environment_with(token, dashboard)
    ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as short:  # a socket's path has at most 107 letters
        arguments = [RAY, "start", "--head", "--block", "--num-cpus=4", "--disable-usage-stats", f"--temp-dir={short}"]
        log = (token.parent / "log").open("w+")
        process = subprocess.Popen(
            [*map(str, arguments), *ports, f"--dashboard-agent-listen-port={agent}", "--object-store-memory=300000000"],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            deadline = time.monotonic() + 90
            while not is_open(dashboard):
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail((token.parent / "log").read_text())
                time.sleep(0.2)
            yield Cluster(Path(short), environment)
        finally:
            members = family(process.pid)
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:  # Ray would give its raylet half a minute to let idle workers go
                for pid in members:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                process.wait(30)
            log.close()
    assert not is_open(gcs)


def is_open(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the repository whose version says so, with large folders that must stay where they are."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("pipelines", "sigrl_core"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / ".gitignore", folder)
    version = folder / "sigrl_core" / "__init__.py"
    version.write_text(re.sub(r'__version__ = "(.*)"', r'__version__ = "\1+uploaded"', version.read_text()))
    for name in (".git", ".venv", "runs", "docs", "tests", "sigrl_core/__pycache__"):
        (folder / name).mkdir()
        (folder / name / "large").write_bytes(secrets.token_bytes(3_000_000))
    return folder


def words_of(job: str, store: Path, *flags: str) -> list[str]:
    """The command of a manifest, of the quickstart's preset, with flags for a small model and machine after its own."""
    manifest = yaml.safe_load((REPOSITORY / "cluster" / "kuberay" / "jobs" / f"{job}.yaml").read_text())
    command = manifest["spec"]["entrypoint"].replace("$STORE", str(store)).replace(".py default ", ".py quickstart ")
    return [*shlex.split(command), *flags]


def submission(words: list[str]) -> list[str]:
    """The command that submits a job, with the code of the folder that it runs in, and follows what the job says."""
    environment = ["--runtime-env", str(REPOSITORY / "cluster" / "runtime_env.yaml")]
    return [str(RAY), "job", "submit", "--working-dir", ".", *environment, "--", *words]


def write_store(folder: Path, count: int) -> None:
    """What the manifests call STORE, with so many drawn images."""
    write_drawn(folder, count, 48)
    (folder / "pictures").rename(folder / "photos")
    names = Vocabulary.parse((folder / "vocabulary.json").read_text(), "drawn").subset("seen").names
    (folder / "labels.txt").write_text("\n".join(names) + "\n")


def submitted(cluster: Cluster, checkout: Path, words: list[str]) -> str:
    """What a job prints that ended well."""
    job = subprocess.run(
        submission(words), cwd=checkout, env=cluster.environment, capture_output=True, text=True, timeout=300
    )
    assert job.returncode == 0, job
    assert "Traceback" not in job.stdout + job.stderr
    return job.stdout


def test_a_submitted_job_trains_as_the_plain_command(
    cluster: Cluster, checkout: Path, toybox_shards: ShardFolder, tmp_path: Path, ray_cluster
) -> None:
    def words(store: Path) -> list[str]:
        store.mkdir()
        (store / "shards").symlink_to(toybox_shards.uri)
        small = "--gpus-per-worker 0 --num-workers 2 --backbone.pretrained random --training.epochs 2"
        return words_of("train", store, *small.split())

    told = submitted(cluster, checkout, words(tmp_path / "job"))
    assert f"checkpoint: {tmp_path}/job/run/checkpoint" in told.splitlines()

    packages = cluster.folder / "session_latest" / "runtime_resources" / "working_dir_files"
    (unpacked,) = [path for path in packages.iterdir() if path.is_dir()]
    sizes = {str(path.relative_to(unpacked)): path.stat().st_size for path in unpacked.rglob("*") if path.is_file()}
    assert "sigrl_core/__init__.py" in sizes
    assert not [name for name in sizes if name.endswith("large")]
    assert sum(sizes.values()) < 2_000_000

    manifest = json.loads((tmp_path / "job" / "run" / "checkpoint" / "manifest.json").read_text())
    assert manifest["code_version"].endswith("+uploaded")  # workers ran the code that travelled, not what is installed

    plain = call(*words(tmp_path / "plain")[1:])
    assert plain.returncode == 0, plain.stderr
    curves = [
        [json.loads(line) for line in (tmp_path / name / "run" / "metrics.jsonl").read_text().splitlines()]
        for name in ("job", "plain")
    ]
    for through_job, direct in zip(*curves, strict=True):
        assert without_clock(through_job) == pytest.approx(without_clock(direct), rel=TOLERANCE)
        assert direct["train/loss"] > 0


@pytest.mark.soak
def test_the_line_of_the_readme(
    cluster: Cluster, checkout: Path, toybox_shards: ShardFolder, tmp_path: Path, soak: bool, in_process
) -> None:
    """On a cluster that runs, with a model and a machine as there are here; in the short form its command without the
    cluster: the other tests here submit as it does."""
    (line,) = re.findall(r"^ray job submit .*$", (REPOSITORY / "cluster" / "README.md").read_text(), re.M)
    (tmp_path / "shards").symlink_to(toybox_shards.uri)
    words = [*shlex.split(line.replace("/shared", str(tmp_path))), "--backbone.pretrained", "random"]
    words += ["--training.max-steps", "2"]
    if soak:
        shutil.copytree(REPOSITORY / "cluster", checkout / "cluster")
        job = subprocess.run(words, cwd=checkout, env=cluster.environment, capture_output=True, text=True, timeout=300)
    else:
        submits, command = words[: words.index("--") + 1], words[words.index("--") + 1 :]
        assert [RAY.name, *submission([])[1:]] == [
            word.replace("cluster/", f"{REPOSITORY}/cluster/") for word in submits
        ]
        assert command[0] == "python"
        job = call(*command[1:])
    assert job.returncode == 0, job
    assert f"checkpoint: {tmp_path}/run/checkpoint" in job.stdout.splitlines()


PLUGIN = """
from sigrl_core import register_loss


@register_loss("constant")
def constant(logits_BC, targets, config, batch):
    return batch.local_mean(logits_BC.sum(1) * 0 + 3)
"""


def test_a_submitted_search(cluster: Cluster, checkout: Path, toybox_shards: ShardFolder, tmp_path: Path) -> None:
    """Its first trial has the loss of a plug-in that travels with the job."""
    (tmp_path / "shards").symlink_to(toybox_shards.uri)
    (checkout / "losses_of_this_test.py").write_text(PLUGIN)
    small = "--gpus-per-worker 0 --concurrency 1 --backbone.pretrained random --training.epochs 2 --trials 3"
    small += " --plugin losses_of_this_test --loss.kind constant"
    told, out = submitted(cluster, checkout, words_of("tune", tmp_path, *small.split())), tmp_path / "search"
    assert "3 trials, " in told
    lines = (out / "trials" / "00000" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["train/loss"] for line in lines] == pytest.approx([3.0] * len(lines))
    assert lines
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    assert [row["trial"] for row in rows] == [0, 1, 2]
    assert all(row["state"] in ("complete", "stopped") and row["objective"] > 0 for row in rows), rows
    manifest = json.loads((out / "checkpoint" / "manifest.json").read_text())
    assert manifest["code_version"].endswith("+uploaded")  # trials, too, ran the code that travelled


@pytest.mark.soak(only=True)  # in test_three_nodes.py, both are submitted in the short form, too
def test_submitted_preprocessing_and_tagging(cluster: Cluster, checkout: Path, tmp_path: Path) -> None:
    write_store(tmp_path, 30)
    told = submitted(cluster, checkout, words_of("preprocess", tmp_path))
    assert "30 rows" in told
    untrained_checkpoint(tmp_path / "run")
    small = "--gpus-per-worker 0 --num-workers 1 --decode-tasks 1"
    told = submitted(cluster, checkout, words_of("tag", tmp_path, *small.split()))
    assert "30 rows: 30 tagged" in told
    assert pq.read_table(tmp_path / "tags" / "tags").num_rows == 30


def test_without_the_token_nothing_is_taken(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(secrets.token_hex(32))
    stranger = {**cluster.environment, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    submit = [str(RAY), "job", "submit", "--", "touch", str(tmp_path / "done")]
    job = subprocess.run(submit, cwd=tmp_path, env=stranger, capture_output=True, text=True, timeout=60)
    assert job.returncode != 0
    assert "403" in job.stdout + job.stderr or "uthenticat" in job.stdout + job.stderr, job
    assert not (tmp_path / "done").exists()


class Deployment:
    """cluster/serve.yaml with a port and machines as there are here.

    Attributes:
        settings: of Serve.
        key: that its clients give.
    """

    def __init__(self, folder: Path, environment: dict[str, str], **replicas: float) -> None:
        self.file, self.environment = folder / "serve.yaml", environment
        (port,) = free_ports(1)
        self.url, keys = f"http://127.0.0.1:{port}", str(folder / "keys.json")
        self.key = add_key(keys, "alice")
        self.settings = yaml.safe_load((REPOSITORY / "cluster" / "serve.yaml").read_text())
        self.settings["http_options"] = {"host": "127.0.0.1", "port": port}
        self.arguments = self.settings["applications"][0]["args"]
        self.arguments["replicas"] |= replicas
        self.arguments["config"]["api_keys"] = keys

    def deploy(self, checkpoint: Path) -> None:
        self.arguments["config"]["checkpoint"] = str(checkpoint)
        self.file.write_text(yaml.safe_dump(self.settings))
        self._serve("deploy", str(self.file))

    def running(self) -> int:
        """Number of replicas that answer, from the API, because `serve status` takes seconds of CPU time."""
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        response = requests.get(
            f"{self.environment['RAY_API_SERVER_ADDRESS']}/api/serve/applications/",
            headers={"Authorization": f"Bearer {token}"},
            timeout=60,
        )
        response.raise_for_status()
        (application,) = response.json()["applications"].values()
        replicas = application["deployments"].get("Server", {}).get("replicas", [])
        return sum(replica["state"] == "RUNNING" for replica in replicas)

    def status(self) -> dict[str, int]:
        """The number of replicas in each state, as `serve status` says."""
        (application,) = yaml.safe_load(self._serve("status"))["applications"].values()
        return application["deployments"]["Server"]["replica_states"]

    def _serve(self, verb: str, *arguments: str) -> str:
        command = [str(RAY.with_name("serve")), verb, "--address", self.environment["RAY_API_SERVER_ADDRESS"]]
        done = subprocess.run([*command, *arguments], env=self.environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.mark.soak(only=True)  # in test_three_nodes.py, the file is deployed in the short form, too
def test_serve_deploy_of_the_committed_file(cluster: Cluster, tmp_path: Path) -> None:
    """Deployed again, it serves another checkpoint."""
    deployment = Deployment(tmp_path, cluster.environment, max_replicas=1, cpus_per_worker=1, gpus_per_worker=0)
    client, versions = Client(deployment.url, deployment.key), list[str]()
    for seed in range(2):
        place = untrained_checkpoint(tmp_path / f"checkpoint {seed}", seed)
        deployment.deploy(place)
        until(lambda: served_version(client) not in (None, *versions), 120)
        version = served_version(client)
        assert version == checkpoint_version(str(place))
        versions.append(version)


def served_version(client: Client) -> str | None:
    """Of the checkpoint that answers; None where nothing does yet."""
    try:
        return client.model().checkpoint
    except ServerError as error:
        if error.status not in (0, 404):
            raise
        return None
