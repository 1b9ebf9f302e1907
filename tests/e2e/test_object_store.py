"""Photographs in and out of a real object store, while it fails and comes back; what it refuses is said clearly."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sigrl_core.data.shards import ShardFolder
from sigrl_core.errors import StorageError
from sigrl_core.io import storage
from sigrl_core.io.parquet import to_parquet
from tests.conftest import COCO160, REPOSITORY
from tests.e2e.conftest import ADMIN, GUEST, Store, bucket_of
from tests.in_process import call
from tests.photographs import write_photographs

pytestmark = pytest.mark.e2e

PREPROCESS = REPOSITORY / "pipelines" / "preprocess.py"
SEEN_NAMES = ["a b.jpg", "ä/ü ö.jpg", "plus+percent%20.jpg", "Z/1.jpg", "a/1.jpg", "a-b/1.jpg"]
ODD_NAMES = [*SEEN_NAMES, ".hidden/1.jpg", "a/.2.jpg"]


def test_a_bucket_is_listed_and_read_like_a_folder(reached: Store, tmp_path: Path) -> None:
    for number, name in enumerate(ODD_NAMES):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(number))
    bucket = bucket_of(reached, "odd-names", tmp_path)
    reached.client().put_object(Bucket="odd-names", Key="a/", Body=b"")  # a folder, as consoles make it
    found, on_disk = storage.list_files(bucket), storage.list_files(str(tmp_path))
    assert [(file.path, file.size) for file in found] == [(file.path, file.size) for file in on_disk]
    assert len(found) == len(SEEN_NAMES)
    assert all(len(storage.read_bytes(storage.join(bucket, file.path))) == file.size for file in found)
    assert found[0].etag
    assert [file.path for file in storage.list_files(f"{bucket}/a")] == ["1.jpg"]
    with pytest.raises(StorageError, match="no such file or folder"):
        storage.list_files(f"{bucket}/nothing")
    with pytest.raises(StorageError, match="no such file or folder"):
        storage.read_bytes(f"{bucket}/nothing")
    with pytest.raises(StorageError, match="4 bytes; at most 3"):
        storage.read_bytes(f"{bucket}/a/1.jpg", 3)


def test_what_is_written_is_there_whole_or_not_at_all(reached: Store) -> None:
    bucket = bucket_of(reached, "written")
    storage.write_bytes(f"{bucket}/deep/a", b"one")
    storage.move(f"{bucket}/deep/a", f"{bucket}/b")
    storage.move(f"{bucket}/deep/a", f"{bucket}/b")  # again, as when only the answer was lost
    assert [file.path for file in storage.list_files(bucket)] == ["b"]
    with pytest.raises(ZeroDivisionError), storage.open_output(f"{bucket}/c") as file:
        file.write(bytes(1 // (file.write(b"half") - 4)))
    assert not storage.exists(f"{bucket}/c")
    storage.remove(f"{bucket}/b")
    assert not storage.exists(f"{bucket}/b")


@pytest.mark.parametrize(
    ("credentials", "images", "message"),
    [
        ((ADMIN[0], "wrong"), "s3://pictures", "the store rejects these credentials; check AWS_ACCESS_KEY_ID"),
        (GUEST, "s3://pictures", "permission denied; check the credentials"),
        (ADMIN, "s3://no-such-bucket", "no such bucket; create it first, or check the name"),
        (ADMIN, "s3://pictures/no such folder", "no such folder of images"),
    ],
)
def test_what_the_store_refuses_is_said_clearly(
    store: Store, tmp_path: Path, in_process, credentials, images, message
) -> None:
    if "pictures" not in {bucket["Name"] for bucket in store.client().list_buckets()["Buckets"]}:
        bucket_of(store, "pictures")
        store.client().put_object(Bucket="pictures", Key="1.jpg", Body=b"x")
    started = time.monotonic()
    told = preprocess(store, images, str(tmp_path / "out"), credentials)
    print(f"{message.split(';')[0]}: after {time.monotonic() - started:.1f} s")
    assert told.returncode == 1
    assert message in told.stderr
    assert len(told.stderr.splitlines()) == 1, told.stderr


def test_an_endpoint_where_nobody_listens(store: Store, tmp_path: Path, in_process) -> None:
    nobody = Store(store.root, store.module.free_port(), store.module, [])
    told = preprocess(nobody, "s3://pictures", str(tmp_path / "out"))
    assert told.returncode == 1
    assert "the store does not answer" in told.stderr
    assert "check AWS_ENDPOINT_URL" in told.stderr


def test_a_column_is_read_once_the_store_is_back(reached: Store) -> None:
    table = pa.table({"number": range(100), "text": ["x" * 100] * 100})
    uri = f"{bucket_of(reached, 'columns')}/a.parquet"
    storage.write_bytes(uri, to_parquet(table))
    reached.stop_proxy()
    back = threading.Timer(2, reached.restart_proxy)
    back.start()
    with storage.open_input(uri) as file:
        assert pq.ParquetFile(file).read(["number"]).equals(table.select(["number"]))
    back.join()


@pytest.mark.soak
def test_a_store_that_fails_for_a_while_changes_no_byte(reached: Store, tmp_path: Path, in_process, soak: bool) -> None:
    """The run that nothing disturbs is in the process of the tests."""
    if not COCO160.is_dir():
        pytest.skip("no photographs: ../shared/data/coco160 is not there")
    count, pause = (2000, 10) if soak else (120, 10)
    write_photographs(COCO160, tmp_path / "photographs", count)
    bucket = bucket_of(reached, "photographs", tmp_path / "photographs")
    undisturbed = preprocess(reached, bucket, "s3://photographs-out/undisturbed")
    assert undisturbed.returncode == 1
    assert "s3://photographs-out/undisturbed: " in undisturbed.stderr
    assert "no such bucket; create it first" in undisturbed.stderr
    bucket_of(reached, "photographs-out")
    undisturbed = preprocess(reached, bucket, "s3://photographs-out/undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stderr
    out = "s3://photographs-out/disturbed"
    running = subprocess.Popen(
        command(bucket, out), env={**os.environ, **reached.environment()}, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 200
    while not storage.exists(f"{out}/parts/00000.json"):
        assert time.monotonic() < deadline
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.1)
    reached.processes[2].send_signal(signal.SIGSTOP)  # who keeps the objects
    time.sleep(pause)
    reached.processes[2].send_signal(signal.SIGCONT)
    reached.restart_proxy()
    errors = running.communicate(timeout=250)[1]
    assert running.returncode == 0, errors
    assert fingerprint(out) == fingerprint("s3://photographs-out/undisturbed")
    folder = ShardFolder.open(out)
    folder.verify()
    assert (folder.manifest["rows_in"], folder.manifest["rows_out"]) == (count, count)
    print(f"{count} photographs in and out of the store, {pause} s without it: the same bytes")


def command(images: str, out: str) -> list[str]:
    flags = ["--corpus", "folder", "--no-labels", "--images", images, "--out", out, "--rows-per-shard", "20"]
    flags += ["--short-side", "224"]
    return [sys.executable, str(PREPROCESS), *flags]


def preprocess(
    store: Store, images: str, out: str, credentials: tuple[str, str] = ADMIN
) -> subprocess.CompletedProcess[str]:
    with mock.patch.dict(os.environ, store.environment(credentials)):
        return call(*command(images, out)[1:])


def fingerprint(uri: str) -> dict[str, str]:
    """sha256 of every object but those that say who worked when."""
    files = [file.path for file in storage.walk(uri) if not file.path.startswith(("run_log", "parts/", "tagging.html"))]
    return {path: hashlib.sha256(storage.read_bytes(storage.join(uri, path))).hexdigest() for path in files}
