"""Work done exactly once: a folder made part by part, by one run at a time, that any kill leaves ready to go on::

    OUT/plan.json            what the folder is made from; another run in it is refused
    OUT/work/                what only an unfinished folder has
    OUT/work/lease.json      who works on it now
    OUT/parts/00000.json     a part's commit record: from when it is written, the part is never done again
    OUT/manifest.json        written last: without it the folder is not finished
    OUT/run_log.jsonl        where, when and how long each part was worked on; in nothing that is compared

Parts are ranges of a listing, fixed before any of them is worked on. What a part writes has names and bytes that follow
from the listing alone, so that a part done twice, by a worker that was thought dead, changes nothing.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sigrl_core import storage
from sigrl_core.errors import StorageError

BEAT_SECONDS = 5.0
"""How often a run says that it is there."""
SILENT_SECONDS = 20.0
"""How long a lease must not change before its holder counts as dead."""


@dataclass(frozen=True)
class Part:
    """Rows `start` up to, not including, `stop` of a listing."""

    index: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """What files of this part are called; sorts as the parts do (up to 100,000 of them)."""
        return f"{self.index:05d}"

    @property
    def num_rows(self) -> int:
        return self.stop - self.start


def plan_parts(num_rows: int, rows_per_part: int) -> list[Part]:
    """Cuts a listing into parts of `rows_per_part` rows, the last one shorter; a pure function."""
    if num_rows < 0 or rows_per_part < 1:
        raise ValueError(f"{num_rows} rows in parts of {rows_per_part}; expected 0 or more rows in parts of 1 or more")
    starts = range(0, num_rows, rows_per_part)
    return [Part(index, start, min(start + rows_per_part, num_rows)) for index, start in enumerate(starts)]


_Part = TypeVar("_Part", bound=Part)


@dataclass(frozen=True)
class Job:
    """A folder that is made part by part.

    Attributes:
        manifest_name: of the file that is written last.
    """

    out: str
    manifest_name: str = "manifest.json"

    def path(self, *names: str) -> str:
        return storage.join(self.out, *names)

    def manifest(self) -> dict[str, Any] | None:
        """None where the folder is not finished."""
        where = self.path(self.manifest_name)
        return storage.read_json(where) if storage.exists(where) else None

    def plan(self) -> dict[str, Any]:
        """What the folder was started with."""
        return storage.read_json(self.path("plan.json"))

    def agree(self, plan: dict[str, Any]) -> None:
        """Compares with what the folder was started with.

        Raises:
            StorageError: it was started with something else, or holds files of something else.
        """
        where = self.path("plan.json")
        if storage.exists(where):
            noted = storage.read_json(where)
            for key, value in plan.items():
                if noted.get(key) != value:
                    raise StorageError(
                        f"{self.out}: was started with {key} = {noted.get(key)}, now {key} = {value}; "
                        "delete the folder or choose another --out"
                    )
        elif storage.is_folder(self.out) and any(not file.path.startswith("work/") for file in storage.walk(self.out)):
            raise StorageError(f"{self.out}: holds files of something else (no plan.json); choose another --out")

    @contextmanager
    def claimed(self, plan: dict[str, Any]) -> Iterator[Lease]:
        """Keeps the folder to this run while the body works on it; waits for a run that died here.

        A body that fails before it calls `start` leaves nothing behind.

        Raises:
            StorageError: as `agree`, or another run is at work here.
        """
        is_new, is_held = not storage.exists(self.out), False
        storage.make_folder(self.out)
        self.agree(plan)
        try:
            with Lease(self.path("work", "lease.json")) as lease:
                is_held = True
                self.agree(plan)  # with what another run may have noted meanwhile
                yield lease
        finally:
            if is_held and not storage.exists(self.path("plan.json")):
                storage.remove(self.out if is_new else self.path("work"))
        if self.manifest() is not None:
            storage.remove(self.path("work"))
            storage.remove_unfinished(self.out)

    def start(self, plan: dict[str, Any]) -> None:
        """Notes what the folder is made from, once that is known to be in order."""
        if not storage.exists(self.path("plan.json")):
            storage.write_json(self.path("plan.json"), plan)

    def committed(self, part: Part) -> bool:
        return storage.exists(self._record(part))

    def pending(self, parts: Sequence[_Part]) -> list[_Part]:
        """The parts without commit record."""
        folder = self.path("parts")
        done = {file.path for file in storage.walk(folder)} if storage.exists(folder) else set()
        return [part for part in parts if part.name + ".json" not in done]

    def commit(self, part: Part, record: dict[str, Any]) -> None:
        """Writes a part's commit record: JSON values, the last thing that is written of the part."""
        storage.write_json(self._record(part), record)

    def record(self, part: Part) -> dict[str, Any]:
        """A part's commit record; raises StorageError where it is missing."""
        return storage.read_json(self._record(part))

    def records(self, parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
        """The commit records of all parts, in their order; raises as `record`."""
        with ThreadPoolExecutor(16) as pool:  # an object store answers many small reads at a time
            for start in range(0, len(parts), 64):  # and few are held
                yield from pool.map(self.record, parts[start : start + 64])

    def take_back(self, parts: Iterable[Part]) -> None:
        """Lets parts be done again; the folder is then not finished."""
        storage.remove(self.path(self.manifest_name))
        for part in parts:
            storage.remove(self._record(part))

    def finish(self, manifest: dict[str, Any], parts: Sequence[Part]) -> None:
        """Writes the run log, then the manifest; everything else has to be there."""
        lines = [
            json.dumps({"part": part.name, **record["log"]})
            for part, record in zip(parts, self.records(parts), strict=True)
        ]
        storage.write_bytes(self.path("run_log.jsonl"), "".join(line + "\n" for line in lines).encode())
        storage.write_json(self.path(self.manifest_name), manifest)

    def _record(self, part: Part) -> str:
        return self.path("parts", part.name + ".json")


class Lease:
    """A file that its holder changes every few seconds, in place of a lock, which object stores lack.

    Whether a holder is alive is seen from whether the file changes, never from clocks of two machines. Two that take it
    in the same moment find out at their next beat, and one stops; until then they write the same bytes.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._holder = secrets.token_hex(8)
        self._beats = 0
        self._stopped = threading.Event()
        self._taken_by: dict[str, Any] | None = None

    def __enter__(self) -> Lease:
        found = self._read()
        if found and not _is_gone(found):
            self._wait_out(found)
        self._write()
        time.sleep(0.2)  # for another that found nothing in the same moment
        if (found := self._read()) and found["holder"] != self._holder:
            raise self._refusal(found)
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        if self._taken_by is None:
            with suppress(StorageError):  # then the next run waits until it is silent long enough
                storage.remove(self.uri)

    def check(self) -> None:
        """Raises StorageError when another run took over, because this one was silent too long."""
        if self._taken_by is not None:
            raise self._refusal(self._taken_by)

    def _beat(self) -> None:
        while not self._stopped.wait(BEAT_SECONDS):
            with suppress(StorageError):  # a store that fails now may be back before anyone counts us as dead
                found = self._read()
                if found and found["holder"] != self._holder:
                    self._taken_by = found
                    return
                self._write()

    def _wait_out(self, found: dict[str, Any]) -> None:
        print(
            f"{self.uri}: {_holder(found)} may still be at work here; looking for up to {SILENT_SECONDS:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        deadline = time.monotonic() + SILENT_SECONDS
        while time.monotonic() < deadline:
            time.sleep(0.5)
            now = self._read()
            if now is None:
                return
            if now != found:
                raise self._refusal(now)

    def _refusal(self, found: dict[str, Any]) -> StorageError:
        return StorageError(
            f"{self.uri}: {_holder(found)} is at work in this folder; wait for it, or stop it and run the same command "
            "again"
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
        found = {"holder": self._holder, "beat": self._beats, "machine": _machine(), "process": os.getpid()}
        storage.write_json(self.uri, found)


def work_log(started: float) -> dict[str, Any]:
    """Who worked since `started` (time.time()), for a commit record's `log`."""
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="milliseconds"),
        "seconds": round(time.time() - started, 3),
    }


def _holder(found: dict[str, Any]) -> str:
    return f"process {found['process']} of {found['machine'].split()[0]}"


def _is_gone(found: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is not there any more; no need to wait then."""
    if found["machine"] != _machine():
        return False
    try:
        os.kill(found["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _machine() -> str:
    """This machine since it started, and among its containers this one, so that a process number means one process."""
    told = [socket.gethostname()]
    for path, read in (("/proc/sys/kernel/random/boot_id", Path.read_text), ("/proc/self/ns/pid", os.readlink)):
        with suppress(OSError):
            told.append(read(Path(path)).strip())
    return " ".join(told)
