"""A bucket tagged in a real object store: ended at random moments, grown, with a store that is away for a while."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sigrl_core.io import storage
from tests.conftest import COCO160, REPOSITORY, untrained_checkpoint
from tests.e2e.conftest import ADMIN, Store, bucket_of
from tests.e2e.test_object_store import fingerprint
from tests.hostile import Hostile, hostile
from tests.in_process import call
from tests.photographs import write_photographs
from tests.processes import family, noted, wait_for

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return untrained_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture
def start():
    """`start_tagging`, and nothing of it is left when the test has failed."""
    with noted() as note:
        yield lambda *arguments: note(start_tagging(*arguments))


def command_of(checkpoint: Path, images: str, out: str, *more: str) -> list[str]:
    words = ["--checkpoint", checkpoint, "--images", images, "--out", out, "--num-workers", 2, "--rows-per-shard", 20]
    return [*map(str, [REPOSITORY / "pipelines" / "tag.py", *words, *more])]


def start_tagging(store: Store, log: Path, *command: str) -> subprocess.Popen:
    with log.open("w") as file:
        environment = {**os.environ, **store.environment()}
        return subprocess.Popen([sys.executable, *command], env=environment, stdout=file, stderr=subprocess.STDOUT)


def tag_here(*command: str) -> None:
    """Tags in the process of the tests."""
    done = call(*command)
    assert done.returncode == 0, done.stderr


def actors(process: subprocess.Popen) -> list[int]:
    return [pid for pid, name in family(process.pid).items() if name.startswith("ray::MapWorker")]


def parts_done(out: str) -> int:
    where = f"{out}/parts"
    return len(storage.list_files(where)) if storage.exists(where) else 0


def rows_of(out: str) -> list[dict]:
    filesystem, path = storage.filesystem_for(f"{out}/tags")
    return pq.read_table(path, filesystem=filesystem).to_pylist()


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)  # the long form; its waits have limits of their own
def test_a_bucket_whatever_happens_and_what_comes_later(
    reached: Store, checkpoint: Path, tmp_path: Path, start, in_process, soak: bool
) -> None:
    """Runs that nothing disturbs are in the process of the tests."""
    if not COCO160.is_dir():
        pytest.skip("no photographs: ../shared/data/coco160 is not there")
    count, kills = (5000, 5) if soak else (300, 1)
    come, change = (1000, 50) if soak else (30, 5)
    write_photographs(COCO160, tmp_path / "photographs", count)
    bucket = bucket_of(reached, "tagged", tmp_path / "photographs")
    bucket_of(reached, "tags")
    log, whole, out = tmp_path / "log", "s3://tags/whole", "s3://tags/out"
    tag_here(*command_of(checkpoint, bucket, whole))

    rng, parts = random.Random(20261126), -(-count // 20)
    for number in range(kills):
        enough = rng.randrange(1, parts // (2 * kills))  # the kills below need parts as well
        more = ["--decode-tasks", "2"] * (number % 2)
        running, begun = start(reached, log, *command_of(checkpoint, bucket, out, *more)), parts_done(out)
        wait_for(lambda enough=enough, begun=begun: parts_done(out) >= begun + enough, running, log)
        running.kill()
        running.wait()
        assert not storage.exists(f"{out}/_SUCCESS")
    running = start(reached, log, *command_of(checkpoint, bucket, out, "--decode-tasks", "2"))
    wait_for(lambda: actors(running), running, log)
    begun = parts_done(out)  # a worker of a killed run may have ended one meanwhile
    wait_for(lambda: parts_done(out) > begun, running, log)
    os.kill(actors(running)[0], signal.SIGKILL)
    wait_for(lambda: parts_done(out) > begun + 2, running, log)
    reached.processes[2].send_signal(signal.SIGSTOP)  # who keeps the objects
    time.sleep(15)
    reached.processes[2].send_signal(signal.SIGCONT)
    assert running.wait(600) == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    assert fingerprint(out) == fingerprint(whole)
    uris = [row["uri"] for row in rows_of(out)]
    listed = [file.path for file in storage.walk(bucket)]
    assert sorted(uris) == listed
    print(f"{count} objects, {kills} kills, an actor killed, 15 s without storage: the same bytes, each key once")

    images = sorted((tmp_path / "photographs").rglob("*.jpg"))
    touched = set()
    for number, key in enumerate([*rng.sample(listed, change), *(f"new/{n}.jpg" for n in range(come))]):
        body = images[number % len(images)].read_bytes() + b" "
        reached.client().put_object(Bucket="tagged", Key=key, Body=body)
        touched.add(key)
    gone = rng.sample([key for key in listed if key not in touched], 3)
    for key in gone:
        reached.client().delete_object(Bucket="tagged", Key=key)
    log_requests(reached)
    tag_here(*command_of(checkpoint, bucket, out))
    assert keys_read(reached, "tagged") == touched
    rows = {row["uri"]: row for row in rows_of(out)}
    assert sorted(rows) == sorted({*listed, *touched} - {*gone})
    assert all(row["etag"] == file.etag for file in storage.walk(bucket) for row in [rows[file.path]])
    print(f"{come} new, {change} changed, {len(gone)} deleted: {len(touched)} objects read, no other")


ODD_KEYS = [
    "with space", "ü/ö", "plus+plus", "per%20cent%", "new\nline", "tab\t", "quote'\"", "a#1", "x.tar#y", "🦓",
    "q?a=b&c", "/leading", "//two", "double//slash", "trailing/", "~home", "/etc/passwd", "s3://tags/x",
    "file:///etc/passwd", ".hidden", "..", "dots/../up", "dots/./here", "back\\slash", "C:\\x", "long" + "g" * 900,
    "*", "[a-z]", "{b}", "<&>", "=",
]  # fmt: skip


def test_500_hostile_objects_have_their_row(
    reached: Store, checkpoint: Path, tmp_path: Path, start, make_image, encoded
) -> None:
    drawn = [encoded(make_image(seed, 400, 300)) for seed in range(3)]
    files = list(hostile(drawn, 460, seed=3))
    bucket = bucket_of(reached, "hostile")
    bucket_of(reached, "tags-of-hostile")
    keys = [ODD_KEYS[number % len(ODD_KEYS)] + f"-{number}.jpg" * (number >= len(ODD_KEYS)) for number in range(460)]
    expected = dict(zip(keys, files, strict=True))
    expected |= {f"folder {number}/": Hostile("folder as an object", b"", "empty") for number in range(39)}
    expected["large"] = Hostile("large", bytes(2_000_001), "unreachable")
    for key, file in expected.items():
        reached.client().put_object(Bucket="hostile", Key=key, Body=file.data)
    log, out = tmp_path / "log", "s3://tags-of-hostile/out"
    command = command_of(checkpoint, bucket, out, "--max-file-bytes", "2000000", "--decode-tasks", "1")
    assert start(reached, log, *command).wait(600) == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    assert not any(secret in log.read_text() for secret in ADMIN)
    rows = rows_of(out)
    assert len(rows) == len(expected) == 500
    assert sorted(row["uri"] for row in rows) == sorted(expected)
    for row in rows:
        file = expected[row["uri"]]
        assert row["size"] == len(file.data)
    found = {row["uri"]: (row["error"], len(row["labels"])) for row in rows}
    right = {uri: ("", 5) for uri, file in expected.items() if file.expected == "good"}
    right |= {
        uri: (file.expected, 0) for uri, file in expected.items() if file.kind in ("folder as an object", "large")
    }
    assert {uri: found[uri] for uri in right} == right
    print(f"{len(rows)} hostile or odd objects, a row each: {Counter(row['error'] or 'tagged' for row in rows)}")


def log_requests(store: Store) -> None:
    """From now on the proxy writes every request into its log."""
    where = store.root / "etc" / "proxy.conf"
    text = where.read_text()
    if "proxy-logging" not in text:
        text = text.replace("pipeline = catch_errors", "pipeline = catch_errors proxy-logging")
        where.write_text(text + "\n[filter:proxy-logging]\nuse = egg:swift#proxy_logging\n")
    (store.root / "proxy.log").write_bytes(b"")
    store.restart_proxy("--verbose")


def keys_read(store: Store, bucket: str) -> set[str]:
    """Objects of a bucket that the log says were read."""
    text = (store.root / "proxy.log").read_text()
    return {key for key in re.findall(rf" GET /(?:v1/[^/ ]+/)?{bucket}/(\S+?)(?:\?\S*)? HTTP", text) if key}
