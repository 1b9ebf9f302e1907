"""Shows the progress of remote workers on the driver: workers report to an actor, and a thread here polls it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

from sigrl_core.errors import SigrlError
from sigrl_core.io.progress import progress_line


class _Board:
    """The actor: the latest reports of the workers."""

    def __init__(self) -> None:
        self.done, self.note = 0, ""
        self.lines: list[str] = []
        self.error: SigrlError | None = None
        self.stop_requested = False

    def begin(self, done: int, lines: list[str]) -> None:
        self.done, self.lines, self.error = done, lines, None

    def add_line(self, line: str) -> None:
        self.lines.append(line)

    def update(self, done: int, note: str) -> bool:
        self.done, self.note = done, note
        return self.stop_requested

    def request_stop(self) -> None:
        self.stop_requested = True

    def fail(self, error: SigrlError) -> None:
        self.error = error

    def take_news(self) -> tuple[int, str, list[str]]:
        """Returns progress, note, and the lines that were added since the last call."""
        lines, self.lines = self.lines, []
        return self.done, self.note, lines

    def failure(self) -> SigrlError | None:
        return self.error


class Progress:
    """A handle of the actor that can be sent to workers."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self._pending_update: Any = None

    def begin(self, done: int, lines: list[str]) -> None:
        """Reports that work starts or restarts, and clears an earlier failure.

        Args:
            done: amount that is done already.
            lines: lines to show above the progress line.
        """
        ray.get(self.actor.begin.remote(done, lines))

    def add_line(self, line: str) -> None:
        """Shows a line above the progress line."""
        ray.get(self.actor.add_line.remote(line))

    def update(self, done: int, note: str = "") -> bool:
        """Reports the amount that is done in total, without waiting for the actor.

        Returns:
            Whether the driver has requested a stop, as of an earlier update: a stop is noticed one or two updates late.
        """
        stop = False
        if self._pending_update is not None:
            if not ray.wait([self._pending_update], timeout=0)[0]:
                return False
            stop = bool(ray.get(self._pending_update))
        self._pending_update = self.actor.update.remote(done, note)
        return stop

    def request_stop(self) -> None:
        """Makes the workers save a checkpoint and stop, one or two steps later."""
        ray.get(self.actor.request_stop.remote())

    def fail(self, error: SigrlError) -> None:
        """Reports the error that stops a worker; Ray Train would keep only the text of a raised error."""
        ray.get(self.actor.fail.remote(error))

    def failure(self) -> SigrlError | None:
        """Returns the error that stopped a worker; None if there is none or work has restarted since."""
        return ray.get(self.actor.failure.remote())


@contextmanager
def watched(label: str, total: int, unit: str = "steps") -> Iterator[Progress]:
    """Shows a progress line in this process while the body runs; yields the handle for the workers.

    Args:
        label: start of the line.
        total: amount of work.
        unit: unit of `total`.
    """
    # On this machine, because other machines may be removed.
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(_Board).remote()
    stopped = threading.Event()

    def show() -> None:
        with progress_line(label, total, unit=unit) as advance:
            shown = 0
            while True:
                finished = stopped.wait(0.5)
                done, note, lines = ray.get(actor.take_news.remote())
                for line in lines:
                    tqdm.write(f"{label}: {line}", file=sys.stderr)
                if done > shown:
                    advance(done - shown, note)
                shown = done
                if finished:
                    return

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield Progress(actor)
    finally:
        stopped.set()
        thread.join(10)
        ray.kill(actor)
