"""Runs the parts of a job through Ray Data; parts.py says why each counts exactly once."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, cast

import pyarrow as pa
import ray

from sigrl_core import storage
from sigrl_core.errors import SigrlError
from sigrl_core.parts import Job, Lease, Part, work_log
from sigrl_core.progress import progress_line

Work = Callable[[Part], dict[str, Any]]


def run_parts(
    job: Job,
    parts: Sequence[Part],
    work: Work | Callable[[], Work],
    lease: Lease,
    *,
    label: str,
    actors: bool = False,
    workers: int | None = None,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
) -> None:
    """Does every part that has no commit record yet and shows how far it is.

    Args:
        work: writes what a part consists of and returns its record, of JSON values; its `bytes_in` and `num_failed`,
            if any, are shown. With `actors`, a function without arguments that makes such a `work`; it runs once in
            each of the `workers` processes, to load a model there.
        lease: of the job.
        label: what the progress line starts with.
        workers: parts at a time; None for as many as there are CPUs (tasks) or one (actors).
        num_cpus: CPUs of each.
        num_gpus: GPUs of each.

    Raises:
        SigrlError: what `work` raised, or another run took over; the parts finished until then stay finished.
    """
    pending = job.pending(parts)
    num_rows = sum(part.num_rows for part in parts)
    with progress_line(label, num_rows, done=num_rows - sum(part.num_rows for part in pending)) as advance:
        if not pending:
            return
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        size = min(workers or (1 if actors else _num_cpus()), len(pending))
        compute: Any = ray.data.ActorPoolStrategy(size=size) if actors else ray.data.TaskPoolStrategy(size=size)
        items = ray.data.from_items([asdict(part) for part in pending], override_num_blocks=len(pending))
        finished = items.map_batches(
            cast(Any, _Actor if actors else _run_batch),
            fn_constructor_args=(work, job) if actors else None,
            fn_args=None if actors else (work, job),
            batch_size=1,
            batch_format="pyarrow",
            compute=compute,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
        )
        started, num_bytes, num_failed = time.monotonic(), 0, 0
        for row in finished.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])
            lease.check()
            num_bytes += row["bytes"]
            num_failed += row["failed"]
            rate = num_bytes / 1e6 / (time.monotonic() - started)
            advance(row["rows"], f"{rate:.1f} MB/s, {num_failed} failed" if num_bytes else "")


def _num_cpus() -> int:
    """CPUs of the cluster, or those of this machine where the cluster is our own and counts more than there are."""
    return int(ray.cluster_resources()["CPU"]) if os.environ.get("RAY_ADDRESS") else os.cpu_count() or 1


class _Actor:
    def __init__(self, make_work: Callable[[], Work], job: Job) -> None:
        self.work, self.job = make_work(), job

    def __call__(self, batch: pa.Table) -> pa.Table:
        return _run_batch(batch, self.work, self.job)


def _run_batch(batch: pa.Table, work: Work, job: Job) -> pa.Table:
    part = Part(**batch.to_pylist()[0])
    error, record = b"", {}
    try:
        if not job.committed(part):  # Ray may run a task again whose result it lost
            started = time.time()
            record = storage.patient(work)(part)  # for what it reads in pieces, which storage cannot read again
            job.commit(part, {**record, "log": work_log(started)})
    except SigrlError as caught:  # as data, because Ray Data keeps of a raised error only its text
        error = pickle.dumps(caught)
    told = {"rows": part.num_rows, "bytes": record.get("bytes_in", 0), "failed": record.get("num_failed", 0)}
    return pa.table({**{key: [value] for key, value in told.items()}, "error": [error]})
