"""Runs the parts of a plan through Ray Data, each exactly once: a part counts when its commit record is written.

`work` makes a part's outputs, whole files under names that depend on the part alone, and returns what to record. Killed
at any point, a part is done again from its start and writes the same bytes; a recorded one is never done again.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, cast

import pyarrow as pa
import ray

from sigrl_core import storage
from sigrl_core.errors import SigrlError
from sigrl_core.parts import Part
from sigrl_core.progress import progress_line

Work = Callable[[Part], dict[str, Any]]


def run_parts(
    parts: Sequence[Part],
    work: Work | Callable[[], Work],
    commits: str,
    *,
    label: str,
    actors: bool = False,
    workers: int | None = None,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
) -> None:
    """Does every part that has no commit record yet and shows how far it is.

    Args:
        work: does one part and returns its record, of JSON values. With `actors`, a function without arguments that
            makes such a `work`; it runs once in each of the `workers` processes, to load a model there.
        commits: folder of the commit records.
        label: what the progress line starts with.
        workers: parts at a time; None for as many as the cluster has CPUs (tasks) or one (actors).
        num_cpus: CPUs of each.
        num_gpus: GPUs of each.

    Raises:
        SigrlError: what `work` raised; the parts finished until then stay finished.
    """
    done = {file.path for file in storage.list_files(commits)} if storage.exists(commits) else set()
    pending = [part for part in parts if _record_name(part) not in done]
    num_rows = sum(part.num_rows for part in parts)
    with progress_line(label, num_rows, done=num_rows - sum(part.num_rows for part in pending)) as advance:
        if not pending:
            return
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        compute = ray.data.ActorPoolStrategy(size=workers or 1) if actors else ray.data.TaskPoolStrategy(size=workers)
        items = ray.data.from_items([asdict(part) for part in pending], override_num_blocks=len(pending))
        finished = items.map_batches(
            cast(Any, _Actor if actors else _run_batch),
            fn_constructor_args=(work, commits) if actors else None,
            fn_args=None if actors else (work, commits),
            batch_size=1,
            batch_format="pyarrow",
            compute=compute,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
        )
        for row in finished.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])
            advance(row["rows"])


def read_records(parts: Sequence[Part], commits: str) -> list[dict[str, Any]]:
    """The commit records of all parts, in their order; raises StorageError where one is missing."""
    with ThreadPoolExecutor(16) as pool:  # an object store answers many small reads at a time
        return list(pool.map(lambda part: storage.read_json(storage.join(commits, _record_name(part))), parts))


class _Actor:
    def __init__(self, make_work: Callable[[], Work], commits: str) -> None:
        self.work, self.commits = make_work(), commits

    def __call__(self, batch: pa.Table) -> pa.Table:
        return _run_batch(batch, self.work, self.commits)


def _run_batch(batch: pa.Table, work: Work, commits: str) -> pa.Table:
    part = Part(**batch.to_pylist()[0])
    record = storage.join(commits, _record_name(part))
    error = b""
    try:
        if not storage.exists(record):  # Ray may run a task again whose result it lost
            storage.write_json(record, work(part))
    except SigrlError as caught:  # as data, because Ray Data keeps of a raised error only its text
        error = pickle.dumps(caught)
    return pa.table({"rows": [part.num_rows], "error": [error]})


def _record_name(part: Part) -> str:
    return part.name + ".json"
