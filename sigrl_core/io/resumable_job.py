"""A `ResumableJob` fills a folder one partition at a time and resumes after any interruption::

    OUT/plan.json            the job's input and settings; a run with another plan is refused
    OUT/work/                temporary files of an unfinished folder
    OUT/work/lease.json      the process that uses the folder
    OUT/parts/00000.json     a partition's commit record: once it is written, the partition is never processed again
    OUT/manifest.json        written last: a folder without it is not finished
    OUT/run_log.jsonl        host, time and duration of each partition; not part of any comparison

Partitions are ranges of a listing, planned before the first one is processed. The names and bytes of their files depend
on the listing alone, so a partition that is processed twice, after a worker was taken for dead, changes nothing.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from sigrl_core.errors import StorageError
from sigrl_core.io import storage
from sigrl_core.io.lease import Lease


@dataclass(frozen=True)
class Partition:
    """Rows `start` up to, not including, `stop` of a listing."""

    index: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Stem of the partition's files; sorts like the partitions, up to 100,000 of them."""
        return f"{self.index:05d}"

    @property
    def num_rows(self) -> int:
        return self.stop - self.start


def plan_partitions(num_rows: int, rows_per_partition: int) -> list[Partition]:
    """Cuts a listing into partitions of `rows_per_partition` rows; the last one may be shorter. A pure function."""
    if num_rows < 0 or rows_per_partition < 1:
        raise ValueError(
            f"{num_rows} rows in partitions of {rows_per_partition}; expected 0 or more rows in partitions of 1 or more"
        )
    starts = range(0, num_rows, rows_per_partition)
    return [Partition(index, start, min(start + rows_per_partition, num_rows)) for index, start in enumerate(starts)]


PLAN = "plan.json"
"""Written first in every folder that commands continue: what the folder is going to contain."""
MANIFEST = "manifest.json"
"""Written last in every folder that commands continue or read: without it, the folder is not finished."""

FOLDER_KINDS = {
    "shards": "a shard folder of preprocess.py",
    "features": "a folder of features of cache_features.py",
    "training": "the folder of a training",
    "search": "the folder of a search",
    "tags": "a folder of tags",
    "sigrl": "a checkpoint",
    "clip": "a CLIP without a SigRL head",
}
"""`kind` in a manifest -> what the folder is."""

_PartitionT = TypeVar("_PartitionT", bound=Partition)


@dataclass(frozen=True)
class ResumableJob:
    """A folder that is filled one partition at a time.

    Attributes:
        out: the folder, local or s3://.
        old_manifest_name: name of the manifest in folders of an earlier version.
        upgrade_plan: converts the plan of an earlier version to the present names of its keys.
    """

    out: str
    old_manifest_name: str | None = None
    upgrade_plan: Callable[[dict[str, Any]], dict[str, Any]] = dict

    def path(self, *names: str) -> str:
        return storage.join(self.out, *names)

    def manifest(self) -> dict[str, Any] | None:
        """Reads the manifest; returns None if the folder is not finished."""
        for where in self._manifests():
            if storage.exists(where):
                return storage.read_json(where)
        return None

    def plan(self) -> dict[str, Any]:
        """Reads the plan that the folder was started with."""
        return self.upgrade_plan(storage.read_json(self.path(PLAN)))

    def check_plan(self, plan: dict[str, Any]) -> None:
        """Checks that the folder was started with this plan, or is new.

        Raises:
            StorageError: it was started with another plan, or contains other files.
        """
        where = self.path(PLAN)
        if storage.exists(where):
            stored = self.plan()
            for key, value in plan.items():
                if stored.get(key) != value:
                    raise StorageError(
                        f"{self.out}: was started with {key} = {stored.get(key)}, now {key} = {value}; "
                        "delete the folder or choose another --out"
                    )
        elif is_occupied(self.out, "work/"):
            raise StorageError(f"{self.out}: holds files of something else (no plan.json); choose another --out")

    @contextmanager
    def locked(self, plan: dict[str, Any]) -> Iterator[Lease]:
        """Holds the folder's lease while the body runs; if a dead run holds it, waits until it expires.

        A body that fails before it calls `start` leaves no files.

        Args:
            plan: the job's input and settings, as JSON values.

        Raises:
            StorageError: as `check_plan`, or another run uses the folder.
        """
        is_new, is_held = not storage.exists(self.out), False
        self.check_plan(plan)
        storage.make_folder(self.out)
        try:
            with Lease(self.path("work", "lease.json")) as lease:
                is_held = True
                self.check_plan(plan)  # another run may have written one meanwhile
                yield lease
        finally:
            if is_held and not storage.exists(self.path(PLAN)):
                storage.remove(self.out if is_new else self.path("work"))
        if self.manifest() is not None:
            storage.remove(self.path("work"))
            storage.remove_unfinished(self.out)

    def start(self, plan: dict[str, Any]) -> None:
        """Writes the plan, unless there is one; called after the input is checked."""
        if not storage.exists(self.path(PLAN)):
            storage.write_json(self.path(PLAN), plan)

    def is_committed(self, partition: Partition) -> bool:
        return storage.exists(self._record(partition))

    def pending(self, partitions: Sequence[_PartitionT]) -> list[_PartitionT]:
        """Returns the partitions that have no commit record."""
        folder = self.path("parts")
        done = {file.path for file in storage.walk(folder)} if storage.exists(folder) else set()
        return [partition for partition in partitions if partition.name + ".json" not in done]

    def commit(self, partition: Partition, record: dict[str, Any]) -> None:
        """Writes a partition's commit record; all other files of the partition must exist.

        Args:
            record: JSON values; `log` is the result of `make_log_entry`.
        """
        storage.write_json(self._record(partition), record)

    def record(self, partition: Partition) -> dict[str, Any]:
        """Reads a partition's commit record; raises StorageError if it is missing."""
        return storage.read_json(self._record(partition))

    def records(self, partitions: Sequence[Partition]) -> Iterator[dict[str, Any]]:
        """Yields the commit records of partitions, in order; raises StorageError if one is missing."""
        with ThreadPoolExecutor(16) as pool:  # many small reads of an object store
            for start in range(0, len(partitions), 64):  # limits the records in memory
                yield from pool.map(self.record, partitions[start : start + 64])

    def reopen(self, partitions: Iterable[Partition]) -> None:
        """Removes commit records, so that these partitions are processed again, and the manifest."""
        for where in self._manifests():
            storage.remove(where)
        for partition in partitions:
            storage.remove(self._record(partition))

    def finish(self, manifest: dict[str, Any], partitions: Sequence[Partition]) -> None:
        """Writes the run log, then the manifest; all other files must exist."""
        lines = [
            json.dumps({"part": partition.name, **record["log"]})
            for partition, record in zip(partitions, self.records(partitions), strict=True)
        ]
        storage.write_bytes(self.path("run_log.jsonl"), "".join(line + "\n" for line in lines).encode())
        self.write_manifest(manifest)

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Writes the manifest, which makes the folder finished; all other files must exist."""
        current, *old = self._manifests()
        storage.write_json(current, manifest)
        for where in old:
            storage.remove(where)

    def _manifests(self) -> list[str]:
        return [self.path(name) for name in (MANIFEST, self.old_manifest_name) if name is not None]

    def _record(self, partition: Partition) -> str:
        return self.path("parts", partition.name + ".json")


def is_occupied(out: str, ignored: str | None = None) -> bool:
    """Returns whether a folder to write contains files, other than those whose path starts with `ignored`.

    Raises:
        StorageError: it is a file.
    """
    if storage.is_folder(out):
        return any(ignored is None or not file.path.startswith(ignored) for file in storage.walk(out))
    if storage.exists(out):
        raise StorageError(f"{out}: a file, expected a folder to write; choose another --out")
    return False


def describe_folder(uri: str) -> str | None:
    """Returns what a command wrote into a folder, for error messages; None for other folders and for files."""
    where = storage.join(uri, MANIFEST)
    try:
        manifest = storage.read_json(where) if storage.exists(where) else None
    except StorageError:
        return None
    return FOLDER_KINDS.get(str(manifest.get("kind"))) if isinstance(manifest, dict) else None


def make_log_entry(started: float) -> dict[str, Any]:
    """Returns the `log` of a commit record: host, process, start and duration of work since `started` (time.time())."""
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="milliseconds"),
        "seconds": round(time.time() - started, 3),
    }
