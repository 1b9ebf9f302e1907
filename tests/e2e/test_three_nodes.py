"""The commands of cluster/kuberay/jobs on three nodes that ask for a token, one of them killed in every stage.

Each node is processes of its own on this machine, the head without CPUs, as the manifests have it; the others say that
they have a GPU each.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sigrl_core.data.shards import ShardFolder
from sigrl_core.model.checkpoint import checkpoint_version
from sigrl_core.serving.client import Client, ServerError
from tests.conftest import REPOSITORY, fingerprint, tagged_rows, untrained_checkpoint
from tests.e2e.test_job_submit import (
    RAY,
    Deployment,
    environment_with,
    is_open,
    served_version,
    submission,
    words_of,
    write_store,
)
from tests.in_process import call
from tests.processes import family, free_ports, noted, until, wait_for

pytestmark = pytest.mark.e2e

IMAGES = 400


class Nodes:
    """A head without CPUs and two workers of two CPUs and a GPU that is none.

    Attributes:
        environment: of nodes and of who submits jobs.
    """

    def __init__(self, folder: Path, token: Path) -> None:
        self.folder = folder
        self.gcs, dashboard, client, agent = free_ports(4)
        self.environment = {
            **environment_with(token, dashboard),
            "SIGRL_FAKE_GPUS": "1",
            "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "sigrl_core.serving.middleware:proxy_middleware",
        }
        head = f"--head --num-cpus=0 --port={self.gcs} --dashboard-port={dashboard} --ray-client-server-port={client}"
        self.processes = list[subprocess.Popen]()
        self._start(*head.split(), agent=agent)
        wait_for(lambda: is_open(dashboard), self.processes[0], self.log, 90)
        for _ in range(2):
            self.add()

    @property
    def log(self) -> Path:
        return self.folder / "started.log"

    def _start(self, *arguments: str, agent: int) -> None:
        """In a folder of its own, as on machines of their own: one that starts clears what it finds of jobs' code."""
        own = [f"--temp-dir={tempfile.mkdtemp(dir=self.folder)}", f"--dashboard-agent-listen-port={agent}"]
        common = ["--block", "--disable-usage-stats", "--object-store-memory=200000000"]
        with self.log.open("a") as log:
            command = [str(RAY), "start", *arguments, *own, *common]
            self.processes.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def add(self) -> None:
        (agent,) = free_ports(1)
        self._start(f"--address=127.0.0.1:{self.gcs}", "--num-cpus=2", "--num-gpus=1", agent=agent)

    def kill(self, number: int) -> None:
        """SIGKILL for all processes of a node."""
        node = self.processes.pop(number)
        for pid in family(node.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.wait()

    def lose_one(self) -> None:
        """Kills the older of the workers; another one comes."""
        self.kill(1)
        self.add()

    def submit(self, words: list[str], log: Path) -> subprocess.Popen:
        """Submits a job; what it says goes into the log."""
        with log.open("w") as told:
            return subprocess.Popen(submission(words), cwd=REPOSITORY, env=self.environment, stdout=told, stderr=told)

    def run(self, words: list[str], log: Path, half_way: Callable[[], bool], result: Path) -> str:
        """What a job says that loses a node when it is `half_way` to its result, and ends well."""
        with noted() as note:
            job = note(self.submit(words, log))
            wait_for(half_way, job, log)
            self.lose_one()
            assert not result.exists(), "the job was done before the node was lost"
            assert job.wait(300) == 0, log.read_text()
        assert result.exists()
        return log.read_text()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with tempfile.TemporaryDirectory(prefix="n", dir="/tmp") as short:  # a socket's path has at most 107 letters
        cluster = Nodes(Path(short), tmp_path_factory.mktemp("token") / "token")
        try:
            yield cluster
        finally:
            for number in reversed(range(len(cluster.processes))):
                cluster.kill(number)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_store(folder, IMAGES)
    return folder


def count(folder: Path, pattern: str) -> int:
    return len(list(folder.glob(pattern)))


PAUSE_S = 0.1
"""Between two requests of a client, in the short form; the long form has none."""
SMALL = "--backbone.pretrained random"


@pytest.mark.soak
def test_every_stage_loses_a_node(nodes: Nodes, home: Path, tmp_path: Path, in_process, soak: bool) -> None:
    """Short form: preprocessing and tagging."""
    log = tmp_path / "log"
    words = words_of("preprocess", home, "--rows-per-shard", "8", "--num-workers", "3")  # so one on each node at least
    told = nodes.run(words, log, lambda: count(home, "shards/parts/*.json") >= 3, home / "shards" / "manifest.json")
    assert f"{IMAGES} rows in" in told
    elsewhere = [word.replace(f"{home}/shards", f"{home}/undisturbed") for word in words]
    assert call(*elsewhere[1:]).returncode == 0
    assert ShardFolder.open(str(home / "shards")).manifest["rows_in"] == IMAGES
    assert fingerprint(home / "shards") == fingerprint(home / "undisturbed")

    if soak:
        small = f"{SMALL} --num-workers 2 --training.epochs 4"
        metrics = home / "run" / "metrics.jsonl"
        words = words_of("train", home, *small.split())
        told = nodes.run(
            words,
            log,
            lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 2,
            home / "run" / "checkpoint" / "manifest.json",
        )
        assert f"checkpoint: {home}/run/checkpoint" in told
        epochs = [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()]
        assert epochs == [1, 2, 3, 4]

        small = f"{SMALL} --concurrency 2 --training.epochs 2 --trials 4"
        words = words_of("tune", home, *small.split())
        nodes.run(words, log, lambda: count(home, "search/**/metrics.jsonl") >= 1, home / "search" / "trials.parquet")
        rows = pq.read_table(home / "search" / "trials.parquet").to_pylist()
        assert [row["trial"] for row in rows] == [0, 1, 2, 3]
        assert all(row["state"] in ("complete", "stopped") for row in rows), rows  # those lost ran once more
    else:
        untrained_checkpoint(home / "run")

    small = "--num-workers 2 --decode-tasks 1 --rows-per-shard 8 --batch-size 4"
    words = words_of("tag", home, *small.split())
    with noted() as note:
        job = note(nodes.submit(words, log))
        wait_for(lambda: count(home, "tags/parts/*.json") >= 2, job, log)
        name = re.findall(r"raysubmit_\w+", log.read_text())[0]
        stopped = subprocess.run(
            [str(RAY), "job", "stop", name], env=nodes.environment, capture_output=True, timeout=60
        )
        assert stopped.returncode == 0, stopped
        job.wait(60)  # Ray calls that a success
    assert not (home / "tags" / "_SUCCESS").exists()
    done = count(home, "tags/parts/*.json")
    told = nodes.run(words, log, lambda: count(home, "tags/parts/*.json") > done, home / "tags" / "_SUCCESS")
    assert f"{IMAGES} rows: {IMAGES} tagged" in told
    rows = tagged_rows(home / "tags")
    assert len({row["uri"] for row in rows}) == len(rows) == IMAGES


@pytest.mark.soak
def test_serving_loses_a_node(nodes: Nodes, home: Path, tmp_path: Path, soak: bool) -> None:
    """A replica on each worker; requests go on while one of them is lost, and all are answered; deployed again, the
    server has another checkpoint. Short form: clients pause between two requests."""
    deployment = Deployment(
        tmp_path, nodes.environment, min_replicas=2, max_replicas=2, cpus_per_worker=1, gpus_per_worker=1
    )  # so one a node
    deployment.settings["proxy_location"] = "HeadOnly"  # nodes on one machine share its ports
    deployment.deploy(first := untrained_checkpoint(tmp_path / "checkpoint"))
    client = Client(deployment.url, deployment.key)
    until(lambda: served_version(client) is not None and deployment.running() == 2)
    assert deployment.status() == {"RUNNING": 2}
    assert served_version(client) == checkpoint_version(str(first))
    image = next((home / "photos").rglob("*.jpg")).read_bytes()
    answers, refused, over = list[tuple[float, ...]](), list[ServerError](), threading.Event()

    def ask() -> None:
        asking = Client(deployment.url, deployment.key)
        while not over.wait(0 if soak else PAUSE_S):
            try:
                (tagged,) = asking.tag([image], labels=["okapi", "drizzle"]).results
                answers.append(tuple(tag.score for tag in tagged.tags))
            except ServerError as error:
                refused.append(error)

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    try:
        until(lambda: len(answers) > 20)
        nodes.lose_one()
        until(lambda: deployment.running() == 1)
        until(lambda: deployment.running() == 2)
        count = len(answers)
        until(lambda: len(answers) > count + 20)
    finally:
        over.set()
        for thread in asking:
            thread.join()
    assert not refused
    assert np.ptp(answers, axis=0).max() < 1e-5  # sums of a request alone and of one among others
    deployment.deploy(second := untrained_checkpoint(tmp_path / "checkpoint 1", 1))
    until(lambda: served_version(client) not in (None, checkpoint_version(str(first))))
    assert served_version(client) == checkpoint_version(str(second))
    print(f"{len(answers)} requests answered, none refused, while a node was lost and another came")
