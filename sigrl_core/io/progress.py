"""Shows the progress of long work: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 5.0


class Advance(Protocol):
    """Reports the amount of work done since the last call, and a note to show beside it."""

    def __call__(self, count: int, note: str = "") -> None: ...


@contextmanager
def progress_line(label: str, total: int, *, done: int = 0, unit: str = "rows") -> Iterator[Advance]:
    """Shows progress on stderr while the body runs.

    Args:
        label: start of the line.
        total: amount of work.
        done: the part of it that an earlier run did.
        unit: unit of the amounts.
    """
    if sys.stderr.isatty():
        with tqdm(total=total, initial=done, desc=label, unit=f" {unit}", dynamic_ncols=True) as bar:

            def update_bar(count: int, note: str = "") -> None:
                bar.set_postfix_str(note, refresh=False)
                bar.update(count)

            yield update_bar
        return
    started, last, first = time.monotonic(), -SECONDS_BETWEEN_LINES, done

    def print_line(count: int, note: str = "") -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or done == total:
            rate = (done - first) / max(now - started, 1e-9)
            left = f"{_format_duration((total - done) / rate)} left" if 0 < done < total and rate else ""
            fields = [f"{label}: {done} of {total} {unit}", f"{rate:.1f} {unit}/s", *filter(None, (note, left))]
            print(", ".join(fields), file=sys.stderr, flush=True)
            last = now

    if done:
        print(f"{label}: {done} of {total} {unit} were done before", file=sys.stderr, flush=True)
    yield print_line


def _format_duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
