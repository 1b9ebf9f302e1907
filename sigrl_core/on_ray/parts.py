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
from sigrl_core.on_ray import session
from sigrl_core.parts import Job, Lease, Part, work_log
from sigrl_core.progress import progress_line

Work = Callable[[Part], dict[str, Any]]


def run_parts(
    job: Job,
    parts: Sequence[Part],
    make_work: Callable[[], Work],
    lease: Lease,
    *,
    label: str,
    workers: int | None = None,
    min_workers: int | None = None,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
) -> None:
    """Does every part that has no commit record yet and shows how far it is.

    Args:
        make_work: called once in each of the `workers` processes, to load there what all parts need. What it returns
            writes what a part consists of and returns its record, of JSON values; `bytes_in` and `num_failed` of it,
            if any, are shown.
        lease: of the job.
        label: what the progress line starts with.
        workers: processes, with one part at a time each; None for as many as there are CPUs.
        min_workers: starts with so many, and others while there is work for them; None starts all.
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
        context.max_consecutive_actor_init_deaths = 3  # a worker killed while it loads is replaced like any other
        context.memory_usage_poll_interval_s = None  # walks the memory map of every worker each second
        _take_warning()
        size = min(workers or session.num_cpus(), len(pending))
        if len(pending) > 4 * size:  # three seconds, for no loading beside the first parts
            ray.data.range(1).materialize()  # by Ray Data's own processes
        items = ray.data.from_items([asdict(part) for part in pending], override_num_blocks=len(pending))
        finished = items.map_batches(
            cast(Any, _Worker),
            fn_constructor_args=(make_work, job, type(pending[0])),
            batch_size=1,
            batch_format="pyarrow",
            # One part waits at each worker, so that none waits for the driver to see that it has finished.
            compute=ray.data.ActorPoolStrategy(
                min_size=min(min_workers or size, size), max_size=size, max_tasks_in_flight_per_actor=2
            ),
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


def _take_warning() -> None:
    """Has Ray say now, unheard, what it says once per process of any actor pool of Ray Data: as an error, that workers
    may not be restarted (ray-project/ray issue 57733). They are; tests kill some."""
    heard, unheard = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(unheard, 2)
    try:
        never: Any = ray.remote(num_cpus=0, resources={"never": 1}, max_restarts=1)(_Never)
        warned = never.remote(ray.put(None))
    finally:
        os.dup2(heard, 2)
        os.close(heard)
        os.close(unheard)
    ray.kill(warned)


class _Never:
    def __init__(self, _: None) -> None: ...


class _Worker:
    def __init__(self, make_work: Callable[[], Work], job: Job, kind: type[Part]) -> None:
        self.work, self.job, self.kind = make_work(), job, kind

    def __call__(self, batch: pa.Table) -> pa.Table:
        part = self.kind(**batch.to_pylist()[0])
        error, record = b"", {}
        try:
            if not self.job.committed(part):  # Ray may run a part again whose result it lost
                started = time.time()
                record = storage.patient(self.work)(part)  # for what it reads in pieces
                self.job.commit(part, {**record, "log": work_log(started)})
        except SigrlError as caught:  # as data, because Ray Data keeps of a raised error only its text
            error = pickle.dumps(caught)
        told = {"rows": part.num_rows, "bytes": record.get("bytes_in", 0), "failed": record.get("num_failed", 0)}
        return pa.table({**{key: [value] for key, value in told.items()}, "error": [error]})
