"""Reads files ahead of their use, in threads, and returns them in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

FILES_IN_FLIGHT = 8
"""Number of concurrent reads of an object store."""


def prefetch_map(call: Callable[[_Item], _Result], items: Iterable[_Item], in_flight: int) -> Iterator[_Result]:
    """Yields the results of `map(call, items)`, with up to `in_flight` calls running ahead in threads.

    At most `in_flight` items are taken ahead from the iterator. With `in_flight` 1 no threads are started.
    """
    if in_flight == 1:
        yield from map(call, items)
        return
    remaining = iter(items)
    pool = ThreadPoolExecutor(in_flight)
    try:
        running: deque[Future[_Result]] = deque(pool.submit(call, item) for item in islice(remaining, in_flight))
        while running:
            result = running.popleft().result()
            running.extend(pool.submit(call, item) for item in islice(remaining, 1))
            yield result
            del result  # it may be a large image, and the next result may take long
    finally:  # also if the caller stops early
        pool.shutdown(cancel_futures=True)


def prefetch(items: Iterator[_Item]) -> Iterator[_Item]:
    """Yields the items, of which none is None; a thread produces each while the previous one is in use."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = pool.submit(next, items, None)
            yield item


def is_local(location: str) -> bool:
    return "://" not in location or location.startswith("file://")


def files_in_flight(location: str) -> int:
    """Returns the number of concurrent reads that suits the location: 1 for a local disk, which has no latency."""
    return 1 if is_local(location) else FILES_IN_FLIGHT
