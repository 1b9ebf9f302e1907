"""Shows on the driver how far workers on other machines are: they tell an actor, a thread here asks it."""

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
from sigrl_core.progress import progress_line


class _Board:
    """What workers have told so far."""

    def __init__(self) -> None:
        self.done, self.note = 0, ""
        self.said: list[str] = []
        self.error: SigrlError | None = None
        self.leave = False

    def begin(self, done: int, said: list[str]) -> None:
        self.done, self.said, self.error = done, said, None

    def say(self, line: str) -> None:
        self.said.append(line)

    def reach(self, done: int, note: str) -> bool:
        self.done, self.note = done, note
        return self.leave

    def ask_to_leave(self) -> None:
        self.leave = True

    def fail(self, error: SigrlError) -> None:
        self.error = error

    def now(self) -> tuple[int, str, list[str]]:
        said, self.said = self.said, []
        return self.done, self.note, said

    def failure(self) -> SigrlError | None:
        return self.error


class Progress:
    """A handle that travels to workers."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self._told: Any = None

    def begin(self, done: int, said: list[str]) -> None:
        """Says that work starts, or starts again, where so much is done; what it stopped for before is forgotten.

        Args:
            said: lines for whoever watches.
        """
        ray.get(self.actor.begin.remote(done, said))

    def say(self, line: str) -> None:
        """A line for whoever watches."""
        ray.get(self.actor.say.remote(line))

    def reach(self, done: int, note: str = "") -> bool:
        """Says how much is done in all; costs the worker nothing that it would wait for.

        Returns:
            Whether the driver had asked to save and leave, as far as is known by now.
        """
        leave = False
        if self._told is not None:
            if not ray.wait([self._told], timeout=0)[0]:
                return False
            leave = bool(ray.get(self._told))
        self._told = self.actor.reach.remote(done, note)
        return leave

    def ask_to_leave(self) -> None:
        """Has the workers save where they are and leave, a step or two later."""
        ray.get(self.actor.ask_to_leave.remote())

    def fail(self, error: SigrlError) -> None:
        """Hands over what a worker stops for, as Ray Train keeps of a raised error only its text."""
        ray.get(self.actor.fail.remote(error))

    def failure(self) -> SigrlError | None:
        """What a worker stopped for, if work has not started again since."""
        return ray.get(self.actor.failure.remote())


@contextmanager
def watched(label: str, total: int, unit: str = "steps") -> Iterator[Progress]:
    """A progress line on this process, fed by whoever holds the handle."""
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # others may leave
    actor: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(_Board).remote()
    stopped = threading.Event()

    def show() -> None:
        with progress_line(label, total, unit=unit) as advance:
            shown = 0
            while True:
                finished = stopped.wait(0.5)
                done, note, said = ray.get(actor.now.remote())
                for line in said:
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
