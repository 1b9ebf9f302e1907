"""Processes that tests start and kill, and those below them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def family(pid: int) -> dict[int, str]:
    """Processes below one, and itself: pid -> command."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it has just ended
                continue
            if status[0] != "Z":
                parents[int(entry.name)] = (int(status[1]), command)
    found = {pid}
    while more := {child for child, (parent, _) in parents.items() if parent in found} - found:
        found |= more
    return {member: parents[member][1] for member in found if member in parents}


def apart_from_ray() -> dict[str, str]:
    """This process's environment, for commands that are not to join the Ray of the tests."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def joined_to_ray() -> dict[str, str]:
    """This process's environment, for commands that join the Ray of the tests."""
    import ray

    return {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}


def recipe_of(target: str) -> str:
    """What `make` would run where everything is installed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of `make test`
    done = subprocess.run(
        ["make", "--dry-run", "--assume-old", ".venv/.installed", target],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def activated() -> dict[str, str]:
    """The same as in a terminal where `. .venv/bin/activate` was said: `python` and `ray` are those of the tests."""
    return {**apart_from_ray(), "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}


_given: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on and nobody was given, outside 10002 to 19999, which Ray gives to its workers."""
    found = list[int]()
    for port in range(20_000 + os.getpid() * 337 % 10_000, 32_000):
        with contextlib.suppress(OSError), socket.socket() as one:
            if port not in _given:
                one.bind(("", port))  # at no address
                _given.add(port)
                found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"fewer than {count} ports are free")


def wait_for(what: Callable[[], object], process: subprocess.Popen, log: Path, seconds: float = 300) -> None:
    """Until something is so, while a process runs whose words are in a log."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, log.read_text()
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)


def until(what: Callable[[], bool], seconds: float = 180) -> None:
    """Until something is so that no process of ours tells."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@contextmanager
def noted() -> Iterator[Callable[[subprocess.Popen], subprocess.Popen]]:
    """A function that notes a process and gives it back; of those noted, none is left afterwards."""
    started: list[subprocess.Popen] = []

    def note(process: subprocess.Popen) -> subprocess.Popen:
        started.append(process)
        return process

    try:
        yield note
    finally:
        for process in started:
            process.kill()
            process.wait()


def assert_gone(processes: dict[int, str], seconds: float = 60) -> None:
    """Ray's agents look after their raylet now and then, and end some seconds after it."""
    deadline = time.monotonic() + seconds
    while alive := {pid: name[:80] for pid, name in processes.items() if family(pid).get(pid) == name}:
        assert time.monotonic() < deadline, alive
        time.sleep(0.2)
