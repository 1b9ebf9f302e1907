"""Local files and the forms of locations; tests/e2e has the tests with an object store."""

import errno
import os
import subprocess

import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError

from sigrl_core.errors import StorageError
from sigrl_core.io import object_store, storage
from sigrl_core.io.object_store import StoreError
from sigrl_core.io.retry import is_transient

pytestmark = pytest.mark.unit


def test_every_form_of_a_location_has_a_filesystem(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for uri in ("a b/c", "~/a b/c", f"{tmp_path}/a b/c", f"file://{tmp_path}/a%20b/c"):
        assert storage.filesystem_for(uri)[1] == f"{tmp_path}/a b/c"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9000")
    filesystem, path = storage.filesystem_for("s3://bucket/some/key")
    assert filesystem.type_name == "s3"
    assert path == "bucket/some/key"
    assert storage.absolute("s3://b/k") == "s3://b/k"
    assert storage.absolute("x") == f"{tmp_path}/x"


@pytest.mark.parametrize(
    ("uri", "message"),
    [("http://x/y", "s3://"), ("ftp://x", "ftp:// is not known"), ("abfs://", "no bucket"), ("s3://", "bucket")],
)
def test_other_locations_are_refused(uri: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        storage.filesystem_for(uri)


def test_join_and_resolve() -> None:
    assert storage.join("s3://b/k/", "a", "b.json") == "s3://b/k/a/b.json"
    assert storage.join("/", "a") == "/a"
    assert storage.resolve("/data", "a/1.jpg") == "/data/a/1.jpg"
    assert storage.resolve("/data", "s3://b/1.jpg") == "s3://b/1.jpg"
    assert storage.join_walked("s3://b", "/etc/passwd") == "s3://b//etc/passwd"
    assert storage.join_walked("s3://b/", "s3://c/1.jpg") == "s3://b/s3://c/1.jpg"
    assert storage.join_walked("/data", "~me/1.jpg") == "/data/~me/1.jpg"


def test_what_is_written_is_read(tmp_path) -> None:
    uri = str(tmp_path / "deep" / "file.bin")
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"one")
    storage.write_bytes(uri, b"two")
    assert storage.read_bytes(uri) == b"two"
    storage.write_json(uri, {"ä": [1, 2.5, None]})
    assert storage.read_json(uri) == {"ä": [1, 2.5, None]}
    assert os.listdir(tmp_path / "deep") == ["file.bin"]
    with pytest.raises(StorageError, match="at most 3"):
        storage.read_bytes(uri, max_bytes=3)
    storage.remove(str(tmp_path / "deep"))
    storage.remove(str(tmp_path / "deep"))
    assert not storage.exists(uri)


def test_compressed_files_are_read_as_they_are(tmp_path) -> None:
    storage.write_bytes(str(tmp_path / "a.gz"), b"\x1f\x8b")
    assert storage.read_bytes(str(tmp_path / "a.gz")) == b"\x1f\x8b"


def test_listing_is_sorted_recursive_and_without_hidden_files(tmp_path) -> None:
    for name in ("b.JPG", "a/z.jpg", "a/.hidden.jpg", "a/note.txt", "c.png"):
        storage.write_bytes(str(tmp_path / name), b"123")
    listed = storage.list_files(str(tmp_path), (".jpg", ".png"))
    assert [file.path for file in listed] == ["a/z.jpg", "b.JPG", "c.png"]
    assert listed[0].size == 3
    assert listed[0].mtime == os.stat(tmp_path / "a/z.jpg").st_mtime_ns


def test_errors_name_the_path_and_the_next_step(tmp_path) -> None:
    with pytest.raises(StorageError, match=r"missing: no such file or folder; check"):
        storage.read_bytes(str(tmp_path / "missing"))
    with pytest.raises(StorageError, match="no such file or folder"):
        storage.list_files(str(tmp_path / "missing"))
    (tmp_path / "bad.json").write_text('{"a":\n oops}')
    with pytest.raises(StorageError, match="line 2"):
        storage.read_json(str(tmp_path / "bad.json"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        storage.write_bytes(str(tmp_path / "file" / "below"), b"")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch) -> None:
    uri = str(tmp_path / "file")
    storage.write_bytes(uri, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="disk full; free some space"):
        storage.write_bytes(uri, b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk(tmp_path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        with pytest.raises(StorageError, match="disk full"):
            storage.write_bytes(str(tmp_path / "file"), b"x" * 100_000)
        assert os.listdir(tmp_path) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_only_failures_of_a_store_are_transient() -> None:
    def error_with(cause: Exception) -> StorageError:
        error = StorageError("x")
        error.__cause__ = cause
        return error

    assert is_transient(error_with(OSError("When reading: AWS Error SLOW_DOWN during GetObject")))
    assert is_transient(error_with(OSError("AWS Error NETWORK_CONNECTION during HeadObject: curlCode: 7")))
    assert not is_transient(error_with(OSError("AWS Error ACCESS_DENIED during HeadObject operation")))
    assert not is_transient(error_with(FileNotFoundError("AWS Error")))
    assert not is_transient(StorageError("unknown scheme"))


def test_other_stores_have_filesystems() -> None:
    filesystem, path = storage.filesystem_for("gs://bucket/some/key")
    assert (filesystem.type_name, path) == ("gcs", "bucket/some/key")
    filesystem, path = storage.filesystem_for("abfs://box@account.dfs.core.windows.net/some/key")
    assert (filesystem.type_name, path) == ("abfs", "box/some/key")

    with pytest.raises(StorageError, match=r"abfs://box/key: this pyarrow cannot reach it \(.*account name\); copy"):
        storage.filesystem_for("abfs://box/key")


def test_a_failing_store_is_tried_again(monkeypatch) -> None:
    paths = []

    def read(path: str, max_bytes: int | None) -> bytes:
        paths.append(path)
        if len(paths) < 4:
            raise StoreError("SlowDown", 503, "Please reduce your request rate")
        return b"at last"

    monkeypatch.setattr(object_store, "read_s3", read)
    assert storage.read_bytes("s3://bucket/key") == b"at last"
    assert paths == ["bucket/key"] * 4
    paths.clear()
    monkeypatch.setattr(object_store, "read_s3", denied := Denied())
    with pytest.raises(StorageError, match="s3://bucket/key: cannot be read: permission denied; check the credentials"):
        storage.read_bytes("s3://bucket/key")
    assert denied.calls == 1


def test_a_request_that_was_not_sent_is_not_tried_again(monkeypatch) -> None:
    def client(settings: object):
        raise NoCredentialsError

    monkeypatch.setattr(object_store, "s3_client", client)
    with pytest.raises(StorageError, match="no credentials found; set AWS_ACCESS_KEY_ID") as caught:
        storage.read_bytes("s3://bucket/key")
    assert not is_transient(caught.value)
    error = EndpointConnectionError(endpoint_url="http://nobody")
    with pytest.raises(StoreError) as caught, object_store._as_os_errors():
        raise error
    assert object_store.is_transient(caught.value)


class Denied:
    """A store that denies access."""

    calls = 0

    def __call__(self, path: str, max_bytes: int | None) -> bytes:
        self.calls += 1
        raise StoreError("AccessDenied", 403, "Access Denied")
