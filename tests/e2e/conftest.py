"""A real object store, for every test of whole commands that reads or writes one."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
import pytest
from botocore.config import Config

from tests.conftest import REPOSITORY

SERVER = REPOSITORY.parent / "shared" / "object_store" / "swift_s3.py"
ADMIN, GUEST = ("test:tester", "testing"), ("test:guest", "guest")


@dataclass
class Store:
    """A running object store and its processes: account, container, object, proxy."""

    root: Path
    port: int
    module: ModuleType
    processes: list[subprocess.Popen]

    def environment(self, credentials: tuple[str, str] = ADMIN) -> dict[str, str]:
        key, secret = credentials
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": "us-east-1",
        }

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id=ADMIN[0],
            aws_secret_access_key=ADMIN[1],
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        )

    def stop_proxy(self) -> None:
        self.processes[3].terminate()  # not killed: that would leave its worker behind, which listens on
        self.processes[3].wait()

    def restart_proxy(self, *flags: str) -> None:
        self.stop_proxy()
        with open(self.root / "proxy.log", "ab") as log:
            command = ["swift-proxy-server", str(self.root / "etc" / "proxy.conf"), *flags]
            environment = {**os.environ, "SWIFT_DIR": str(self.root / "etc")}
            self.processes[3] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert time.monotonic() < deadline, (self.root / "proxy.log").read_text()
            time.sleep(0.1)


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Iterator[Store]:
    if not SERVER.exists():
        pytest.skip("no object store to test with: ../shared/object_store is not there")
    with started_store(tmp_path_factory.mktemp("store")) as store:
        yield store


@contextmanager
def started_store(root: Path) -> Iterator[Store]:
    """A new store, with its data below a folder."""
    spec = importlib.util.spec_from_file_location("swift_s3", SERVER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        port = module.free_port()
        module.write_config(root, port, *ADMIN)
        proxy = root / "etc" / "proxy.conf"
        text = proxy.read_text()
        proxy.write_text(text.replace(f"{ADMIN[1]} .admin\n", f"{ADMIN[1]} .admin\nuser_test_guest = {GUEST[1]}\n"))
        store = Store(root, port, module, module.start(root))
        try:
            store.wait_until_ready()
            yield store
        finally:
            for process in store.processes:
                process.terminate()
            for process in store.processes:
                process.wait()


@pytest.fixture
def reached(store: Store, monkeypatch) -> Store:
    """The store, which this process reaches by its environment."""
    for name, value in store.environment().items():
        monkeypatch.setenv(name, value)
    return store


def bucket_of(store: Store, name: str, folder: Path | None = None) -> str:
    """A new bucket, with the files of a folder."""
    store.client().create_bucket(Bucket=name)
    for path in sorted(folder.rglob("*.jpg")) if folder else []:
        store.client().put_object(Bucket=name, Key=str(path.relative_to(folder)), Body=path.read_bytes())
    return f"s3://{name}"
