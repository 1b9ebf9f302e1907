"""Commands and stages inside the process of the tests, for tests that are not about other processes.

`partitions_here` and `training_here` stand in for the processes that Ray would start, each of which imports torch for
seconds. What is sent to such a process is pickled here as well.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pyarrow as pa
import ray
import ray.train
import torch
from ray import cloudpickle

from sigrl_core.io.resumable_job import Partition, ResumableJob
from sigrl_core.on_ray import partitions, train
from sigrl_core.on_ray.partitions import Work
from sigrl_core.on_ray.progress import _Board
from sigrl_core.training.state import MONITOR
from tests.processes import activated, noted

REPOSITORY = Path(__file__).resolve().parents[1]


def call(script: str | Path, *arguments: object, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Runs `python pipelines/SCRIPT arguments...` in this process, on the Ray that is running.

    Args:
        script: a file of pipelines/; only its name counts.
        arguments: of the command.
        cwd: folder that the command runs in.
    """
    main = importlib.import_module(f"sigrl_core.cli.{Path(script).stem}").main
    words, output, errors = [str(script), *map(str, arguments)], io.StringIO(), io.StringIO()
    status: Any = 0
    with (
        mock.patch.object(sys, "argv", words),
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        try:
            main()
        except SystemExit as ended:
            status = ended.code or 0
    return subprocess.CompletedProcess(words, status, output.getvalue(), errors.getvalue())


class Terminal:
    """Runs blocks of bash in a folder. `python pipelines/NAME.py ...` in them is a `call` in this process.

    Only serve.py, which runs until it is stopped, and Python with anything else than a pipeline are processes.
    """

    def __init__(self, folder: Path) -> None:
        """`folder/.venv` becomes an environment whose `python` is a client of this process."""
        self.folder, self.socket = folder, folder / ".venv" / "socket"
        binaries = folder / ".venv" / "bin"
        binaries.mkdir(parents=True)
        (binaries / "activate").write_text(f'PATH="{binaries}{os.pathsep}$PATH"\n')
        (binaries / "python").write_text(_CLIENT.format(python=sys.executable, socket=str(self.socket)))
        (binaries / "python").chmod(0o755)
        environment = activated()
        self.environment = {**environment, "PATH": f"{binaries}{os.pathsep}{environment['PATH']}"}

    def run(self, script: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """Runs a block, which ends at its first command that fails."""
        words = ["bash", "-euo", "pipefail", "-c", script]
        deadline = time.monotonic() + timeout
        self.socket.unlink(missing_ok=True)
        with (
            tempfile.TemporaryFile("w+") as output,
            tempfile.TemporaryFile("w+") as errors,
            socket.socket(socket.AF_UNIX) as listener,
            noted() as note,
        ):
            listener.bind(str(self.socket))
            listener.listen()
            listener.settimeout(0.1)
            block = note(
                subprocess.Popen(words, cwd=self.folder, env=self.environment, stdout=output, stderr=errors, text=True)
            )
            while block.poll() is None:
                assert time.monotonic() < deadline, script
                with contextlib.suppress(TimeoutError):
                    connection, _ = listener.accept()
                    with connection:
                        _answer(connection)
            output.seek(0)
            errors.seek(0)
            return subprocess.CompletedProcess(words, block.returncode, output.read(), errors.read())


_CLIENT = """#!{python} -IS
import json, os, socket, sys
words = sys.argv[1:]
if not words or not words[0].startswith("pipelines/") or words[0].endswith("/serve.py") and "--new-key" not in words:
    os.execv({python!r}, [{python!r}, *words])
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({socket!r})
    connection.sendall(json.dumps([os.getcwd(), words]).encode())
    connection.shutdown(socket.SHUT_WR)
    status, output, errors = json.loads(b"".join(iter(lambda: connection.recv(65536), b"")))
sys.stdout.write(output)
sys.stderr.write(errors)
sys.exit(status)
"""


def _answer(connection: socket.socket) -> None:
    connection.settimeout(None)
    cwd, words = json.loads(b"".join(iter(lambda: connection.recv(65536), b"")))
    done = call(*words, cwd=Path(cwd))
    connection.sendall(json.dumps([done.returncode, done.stdout, done.stderr]).encode())


@contextlib.contextmanager
def all_here() -> Iterator[None]:
    """Both `partitions_here` and `training_here`."""
    with partitions_here(), training_here():
        yield


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch computes with one thread, as in a Ray worker of one CPU, so that sums are the same to the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def partitions_here() -> Iterator[None]:
    """Parts of preprocessing, tagging and caching are worked on one after the other in this process."""

    def run(job: ResumableJob, pending: Sequence[Partition], make_work: Work, *_: Any) -> Iterator[dict[str, Any]]:
        arguments = cloudpickle.loads(cloudpickle.dumps((make_work, job, type(pending[0]))))
        with one_thread():
            worker = partitions._Worker(*arguments)
            for part in pending:
                (row,) = worker(pa.Table.from_pylist([vars(part)])).to_pylist()
                yield row

    with mock.patch.object(partitions, "_run_on_actors", run):
        yield


@contextlib.contextmanager
def training_here() -> Iterator[None]:
    """Training runs with one worker in this process, and saves its checkpoints where Ray Train saves them.

    It resumes from the last checkpoint in Ray Train's snapshot there.
    """

    @contextlib.contextmanager
    def watched(label: str, total: int, unit: str = "steps") -> Iterator[_Board]:
        yield _Board()

    with mock.patch.object(train, "_Trainer", _TrainerHere), mock.patch.object(train, "watched", watched):
        yield


class _TrainerHere:
    def __init__(self, work: Any, *, train_loop_config: dict[str, Any], run_config: Any, **_: Any) -> None:
        self.work, self.setup, self.run = work, train_loop_config, run_config
        self.best_checkpoints: list[tuple[ray.train.Checkpoint, dict[str, Any]]] = []

    def fit(self) -> _TrainerHere:
        context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1, get_local_world_size=lambda: 1)
        patches = {"get_context": lambda: context, "get_checkpoint": self._latest, "report": self._report}
        threads = torch.get_num_threads()
        try:
            with mock.patch.multiple(ray.train, **patches):
                self.work(self.setup)
        finally:
            torch.set_num_threads(threads)
        return self

    def _latest(self) -> ray.train.Checkpoint | None:
        folder = f"{self.run.storage_path}/{self.run.name}"
        place, filesystem = f"{folder}/checkpoint_manager_snapshot.json", self.run.storage_filesystem
        if filesystem.get_file_info(place).type != pa.fs.FileType.File:
            return None
        snapshot = json.loads(filesystem.open_input_file(place).read())
        earlier = [
            (ray.train.Checkpoint(f"{folder}/{each['checkpoint_dir_name']}", filesystem), each["metrics"])
            for each in snapshot["checkpoint_results"]
        ]
        self.best_checkpoints = earlier + self.best_checkpoints
        name = snapshot["latest_checkpoint_result"]["checkpoint_dir_name"]
        return ray.train.Checkpoint(f"{folder}/{name}", filesystem)

    def _report(self, metrics: dict[str, Any], *, checkpoint: Any, checkpoint_dir_name: str) -> None:
        place = f"{self.run.storage_path}/{self.run.name}/{checkpoint_dir_name}"
        with checkpoint.as_directory() as folder:
            pa.fs.copy_files(folder, place, pa.fs.LocalFileSystem(), self.run.storage_filesystem)
        saved = ray.train.Checkpoint(place, self.run.storage_filesystem)
        self.best_checkpoints.append((saved, metrics))

    def get_best_checkpoint(self, metric: str, mode: str) -> ray.train.Checkpoint:
        assert (metric, mode) == (MONITOR, "max")
        return max(self.best_checkpoints, key=lambda saved: saved[1][MONITOR])[0]
