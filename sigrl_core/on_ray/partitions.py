"""Runs the partitions of a job through Ray Data; `io.resumable_job` explains why each one counts exactly once."""

from __future__ import annotations

import logging
import os
import pickle
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any, cast

import pyarrow as pa
import ray
import ray.data

from sigrl_core.config import Resources
from sigrl_core.errors import SigrlError
from sigrl_core.io.lease import Lease
from sigrl_core.io.progress import progress_line
from sigrl_core.io.resumable_job import Partition, ResumableJob, make_log_entry
from sigrl_core.io.retry import with_retries
from sigrl_core.on_ray import session

Work = Callable[[Partition], dict[str, Any]]


def run_partitions(
    job: ResumableJob,
    parts: Sequence[Partition],
    make_work: Callable[[], Work],
    lease: Lease,
    *,
    label: str,
    resources: Resources,
) -> None:
    """Processes every partition that has no commit record, and shows the progress.

    Args:
        job: the folder.
        parts: all partitions of the job.
        make_work: makes the function that processes a partition: it writes the files and returns the commit record,
            with JSON values. `bytes_in` and `num_failed` of the record are shown. `make_work` is called once in each
            worker process, so that it can load a model.
        lease: the lease of the job.
        label: start of the progress line.
        resources: the workers, each of which processes one partition at a time; `num_workers` None uses as many as the
            cluster has room for.

    Raises:
        SigrlError: an error of a worker, or another run has taken the folder over; finished partitions stay finished.
    """
    pending = job.pending(parts)
    num_rows = sum(part.num_rows for part in parts)
    with progress_line(label, num_rows, done=num_rows - sum(part.num_rows for part in pending)) as advance:
        if not pending:
            return
        size = min(resources.num_workers or session.max_workers(resources), len(pending))
        started, num_bytes, num_failed = time.monotonic(), 0, 0
        for row in _run_on_actors(job, pending, make_work, size, resources):
            if row["error"]:
                raise pickle.loads(row["error"])
            lease.check()
            num_bytes += row["bytes"]
            num_failed += row["failed"]
            rate = num_bytes / 1e6 / (time.monotonic() - started)
            advance(row["rows"], f"{rate:.1f} MB/s, {num_failed} failed" if num_bytes else "")


def _run_on_actors(
    job: ResumableJob,
    pending: Sequence[Partition],
    make_work: Callable[[], Work],
    max_workers: int,
    resources: Resources,
) -> Iterable[dict[str, Any]]:
    """Yields one row of `_Worker` for each partition, in the order in which they end."""
    for handler in logging.getLogger("ray.data").handlers:  # these print errors twice; Ray's session folder has them
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_consecutive_actor_init_deaths = 3  # also replaces workers that are killed while they load
    context.memory_usage_poll_interval_s = None  # polling reads the memory map of every worker each second
    _suppress_restart_warning()
    min_workers = min(resources.min_workers or max_workers, max_workers)
    if len(pending) > 4 * max_workers:  # takes three seconds
        ray.data.range(1).materialize()  # starts Ray Data's own processes now, and not beside the first partitions
    items = ray.data.from_items([asdict(part) for part in pending], override_num_blocks=len(pending))
    finished = items.map_batches(
        cast(Any, _Worker),
        fn_constructor_args=(make_work, job, type(pending[0])),
        batch_size=1,
        batch_format="pyarrow",
        # One partition is queued at each worker, so that no worker waits for the driver.
        compute=ray.data.ActorPoolStrategy(min_size=min_workers, max_size=max_workers, max_tasks_in_flight_per_actor=2),
        num_cpus=resources.cpus_per_worker,
        num_gpus=resources.gpus_per_worker,
    )
    return finished.iter_rows()


def _suppress_restart_warning() -> None:
    """Makes Ray print a wrong warning now, while stderr is redirected to /dev/null.

    Once per process, Ray prints an error that the workers of a Ray Data pool may not be restarted
    (ray-project/ray issue 57733). They are restarted; tests kill some.
    """
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        never: Any = ray.remote(num_cpus=0, resources={"never": 1}, max_restarts=1)(_Never)
        actor = never.remote(ray.put(None))
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
    ray.kill(actor)


class _Never:
    """An actor that is never scheduled."""

    def __init__(self, _: None) -> None: ...


class _Worker:
    """The actor of Ray Data that processes partitions, one row of a table each."""

    def __init__(self, make_work: Callable[[], Work], job: ResumableJob, kind: type[Partition]) -> None:
        self.job, self.kind = job, kind
        self.load_error: SigrlError | None = None
        try:
            self.work = make_work()
        except SigrlError as caught:  # returned for the first partition, see below
            self.load_error = caught

    def __call__(self, batch: pa.Table) -> pa.Table:
        part = self.kind(**batch.to_pylist()[0])
        error, record = b"", {}
        try:
            if self.load_error is not None:
                raise self.load_error
            if not self.job.is_committed(part):  # Ray runs a partition again if it loses the result
                started = time.time()
                record = with_retries(self.work)(part)  # storage retries single reads, but not files read in pieces
                self.job.commit(part, {**record, "log": make_log_entry(started)})
        except SigrlError as caught:  # returned as data: Ray Data keeps only the text of a raised error
            error = pickle.dumps(caught)
        counts = {"rows": part.num_rows, "bytes": record.get("bytes_in", 0), "failed": record.get("num_failed", 0)}
        return pa.table({**{key: [value] for key, value in counts.items()}, "error": [error]})
