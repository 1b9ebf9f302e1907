"""Shows on the driver how far workers on other machines are: they tell an actor, a thread here asks it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from sigrl_core.progress import progress_line


class _Counter:
    def __init__(self) -> None:
        self.done, self.note = 0, ""

    def advance(self, count: int, note: str) -> None:
        self.done, self.note = self.done + count, note

    def now(self) -> tuple[int, str]:
        return self.done, self.note


class Progress:
    """A handle that travels to workers; telling it costs them nothing they would wait for."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def advance(self, count: int, note: str = "") -> None:
        self.actor.advance.remote(count, note)


@contextmanager
def watched(label: str, total: int, unit: str = "steps") -> Iterator[Progress]:
    """A progress line on this process, fed by whoever holds the handle."""
    actor: Any = ray.remote(num_cpus=0)(_Counter).remote()
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
