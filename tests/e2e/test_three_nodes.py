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

from sigrl_core.records import ShardFolder
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
from tests.processes import family, free_ports, noted, until, wait_for

pytestmark = pytest.mark.e2e

PICTURES = 400


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
            "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "sigrl_core.serving.middleware:in_proxies",
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
    write_store(folder, PICTURES)
    return folder


def count(folder: Path, pattern: str) -> int:
    return len(list(folder.glob(pattern)))


SMALL = "--backbone.pretrained random"


@pytest.mark.soak
def test_every_stage_loses_a_node(nodes: Nodes, home: Path, tmp_path: Path, command, soak: bool) -> None:
    """Short form: preprocessing and tagging."""
    log = tmp_path / "log"
    words = words_of("preprocess", home, "--rows-per-shard", "8")
    told = nodes.run(words, log, lambda: count(home, "shards/parts/*.json") >= 3, home / "shards" / "manifest.json")
    assert f"{PICTURES} rows in" in told
    elsewhere = [word.replace(f"{home}/shards", f"{home}/undisturbed") for word in words]
    assert command(*elsewhere[1:]).returncode == 0
    assert ShardFolder.open(str(home / "shards")).manifest["rows_in"] == PICTURES
    assert fingerprint(home / "shards") == fingerprint(home / "undisturbed")

    if soak:
        small = f"{SMALL} --scale.workers 2 --training.epochs 4"
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

    small = "--workers 2 --decode-tasks 1 --rows-per-part 8 --batch-size 4"
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
    assert f"{PICTURES} rows: {PICTURES} tagged" in told
    rows = tagged_rows(home / "tags")
    assert len({row["uri"] for row in rows}) == len(rows) == PICTURES


def test_serving_loses_a_node(nodes: Nodes, home: Path, tmp_path: Path) -> None:
    """A replica on each worker; requests go on while one of them is lost, and all are answered."""
    deployment = Deployment(tmp_path, nodes.environment, least=2, most=2, cpus=1, gpus=1)  # so one a node
    deployment.settings["proxy_location"] = "HeadOnly"  # nodes on one machine share its ports
    deployment.deploy(untrained_checkpoint(tmp_path / "checkpoint"))
    client = Client(deployment.url, deployment.key)
    until(lambda: served_version(client) is not None and deployment.running() == 2)
    picture = next((home / "photos").rglob("*.jpg")).read_bytes()
    answers, refused, over = list[tuple[float, ...]](), list[ServerError](), threading.Event()

    def ask() -> None:
        asking = Client(deployment.url, deployment.key)
        while not over.is_set():
            try:
                (tagged,) = asking.tag([picture], labels=["okapi", "drizzle"]).results
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
    print(f"{len(answers)} requests answered, none refused, while a node was lost and another came")
