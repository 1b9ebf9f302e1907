"""Measures the CPU time of a process and of everything that it starts."""

from __future__ import annotations

import os
import threading
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PERIOD_S = 0.2


class CpuMeter:
    """Samples the CPU time of this process and of its descendants from /proc.

    A process that ends counts with its last sample, so each loses at most one period. The kernel's own sums of children
    (`RUSAGE_CHILDREN`) miss most of the work here: a raylet never waits for the worker processes that it starts.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, int], float] = {}  # (pid, start time) -> user and system time
        self._lock = threading.Lock()
        self._reported = 0.0
        threading.Thread(target=self._run, daemon=True, name="cpu-meter").start()

    def lap(self) -> float:
        """Returns the CPU seconds since the call before."""
        with self._lock:
            self._sample()
            total = sum(self._seconds.values())
            lap, self._reported = total - self._reported, total
        return lap

    def _run(self) -> None:
        pause = threading.Event()
        while not pause.wait(_PERIOD_S):
            with self._lock:
                self._sample()

    def _sample(self) -> None:
        parents, alive = dict[int, int](), dict[int, tuple[tuple[int, int], float]]()
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    fields = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
                except OSError:  # the process has ended
                    continue
                pid = int(name)
                parents[pid] = int(fields[1])
                alive[pid] = (pid, int(fields[19])), (int(fields[11]) + int(fields[12])) * _TICK_S
        for pid, (process, seconds) in alive.items():
            if process in self._seconds or _is_descendant(pid, parents):
                self._seconds[process] = seconds


def _is_descendant(pid: int, parents: dict[int, int]) -> bool:
    """Whether this process is `pid` or one of its ancestors."""
    while pid in parents:
        if pid == os.getpid():
            return True
        pid = parents[pid]
    return False
