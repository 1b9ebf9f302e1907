"""A lease file that gives one process at a time the exclusive use of a folder."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from sigrl_core.errors import StorageError
from sigrl_core.io import storage

HEARTBEAT_SECONDS = 5.0
"""Time between two changes of the lease file by its holder."""

EXPIRY_SECONDS = 20.0
"""A holder whose lease file has not changed for this long counts as dead."""


class Lease:
    """A context manager that holds a lease file. Object stores have no locks, so a lease replaces one.

    A holder counts as alive while its lease file keeps changing; clocks are never compared. If two processes take the
    lease at the same moment, one of them fails at its next heartbeat. Until then both write the same bytes.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._holder = secrets.token_hex(8)
        self._beats = 0
        self._stopped = threading.Event()
        self._new_holder: dict[str, Any] | None = None  # content of the lease file, if another run took the lease

    def __enter__(self) -> Lease:
        stored = self._read()
        if stored and not _has_exited(stored):
            self._wait_for_expiry(stored)
        self._write()
        time.sleep(0.2)  # another process may have seen no lease at the same moment
        if (stored := self._read()) and stored["holder"] != self._holder:
            raise self._error(stored)
        self._thread = threading.Thread(target=self._send_heartbeats, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        if self._new_holder is None:
            with suppress(StorageError):  # then the next run waits until the lease expires
                storage.remove(self.uri)

    def check(self) -> None:
        """Raises StorageError if another run took the lease because this one's had expired."""
        if self._new_holder is not None:
            raise self._error(self._new_holder)

    def _send_heartbeats(self) -> None:
        while not self._stopped.wait(HEARTBEAT_SECONDS):
            with suppress(StorageError):  # the store may recover before the lease expires
                stored = self._read()
                if stored and stored["holder"] != self._holder:
                    self._new_holder = stored
                    return
                self._write()

    def _wait_for_expiry(self, stored: dict[str, Any]) -> None:
        print(
            f"{self.uri}: {_describe(stored)} may still use this folder; waiting up to {EXPIRY_SECONDS:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        deadline = time.monotonic() + EXPIRY_SECONDS
        while time.monotonic() < deadline:
            time.sleep(0.5)
            current = self._read()
            if current is None:
                return
            if current != stored:
                raise self._error(current)

    def _error(self, stored: dict[str, Any]) -> StorageError:
        return StorageError(
            f"{self.uri}: {_describe(stored)} uses this folder; wait for it, or stop it and run the same command again"
        )

    def _read(self) -> dict[str, Any] | None:
        try:
            return storage.read_json(self.uri)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def _write(self) -> None:
        self._beats += 1
        content = {"holder": self._holder, "beat": self._beats, "machine": _machine_id(), "process": os.getpid()}
        storage.write_json(self.uri, content)


def _describe(stored: dict[str, Any]) -> str:
    return f"process {stored['process']} of {stored['machine'].split()[0]}"


def _has_exited(stored: dict[str, Any]) -> bool:
    """Returns whether the holder was a process of this machine that has exited, so that no waiting is needed."""
    if stored["machine"] != _machine_id():
        return False
    try:
        os.kill(stored["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _machine_id() -> str:
    """Identifies this boot of this machine and this container, within which a process number is unique."""
    parts = [socket.gethostname()]
    for path, read in (("/proc/sys/kernel/random/boot_id", Path.read_text), ("/proc/self/ns/pid", os.readlink)):
        with suppress(OSError):
            parts.append(read(Path(path)).strip())
    return " ".join(parts)
