"""Shows on the driver how far workers on other machines are: they tell an actor, a thread here asks it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from sigrl_core.errors import SigrlError
from sigrl_core.progress import progress_line


class _Board:
    """What workers have told so far."""

    def __init__(self) -> None:
        self.done, self.note = 0, ""
        self.error: SigrlError | None = None

    def begin(self, done: int) -> None:
        self.done, self.error = done, None

    def reach(self, done: int, note: str) -> None:
        self.done, self.note = done, note

    def fail(self, error: SigrlError) -> None:
        self.error = error

    def now(self) -> tuple[int, str]:
        return self.done, self.note

    def failure(self) -> SigrlError | None:
        return self.error


class Progress:
    """A handle that travels to workers."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def begin(self, done: int) -> None:
        """Says that work starts, or starts again, where so much is done; what it stopped for before is forgotten."""
        ray.get(self.actor.begin.remote(done))

    def reach(self, done: int, note: str = "") -> None:
        """Says how much is done in all; costs the worker nothing that it would wait for."""
        self.actor.reach.remote(done, note)

    def fail(self, error: SigrlError) -> None:
        """Hands over what a worker stops for, as Ray Train keeps of a raised error only its text."""
        ray.get(self.actor.fail.remote(error))

    def failure(self) -> SigrlError | None:
        """What a worker stopped for, if work has not started again since."""
        return ray.get(self.actor.failure.remote())


@contextmanager
def watched(label: str, total: int, unit: str = "steps") -> Iterator[Progress]:
    """A progress line on this process, fed by whoever holds the handle."""
    actor: Any = ray.remote(num_cpus=0)(_Board).remote()
    stopped = threading.Event()

    def show() -> None:
        with progress_line(label, total, unit=unit) as advance:
            shown = 0
            while True:
                finished = stopped.wait(0.5)
                done, note = ray.get(actor.now.remote())
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
