"""Files of an object store, several at a time, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

FILES_IN_FLIGHT = 8


def ahead(call: Callable[[_Item], _Result], items: Iterable[_Item], in_flight: int) -> Iterator[_Result]:
    """Results of a call in the order of its items, as `map`; calls for `in_flight` items ahead, in threads.

    Takes no more items than these from an iterator; with `in_flight` 1 it starts no threads.
    """
    if in_flight == 1:
        yield from map(call, items)
        return
    waiting = iter(items)
    pool = ThreadPoolExecutor(in_flight)
    try:
        called: deque[Future[_Result]] = deque(pool.submit(call, item) for item in islice(waiting, in_flight))
        while called:
            result = called.popleft().result()
            called.extend(pool.submit(call, item) for item in islice(waiting, 1))
            yield result
            del result  # may be a large picture, and the next call is long
    finally:  # also where nobody asks for the rest
        pool.shutdown(cancel_futures=True)


def one_ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """The items, none of them None; each is made, in a thread, while the one before it is used."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = pool.submit(next, items, None)
            yield item


def is_local(location: str) -> bool:
    return "://" not in location or location.startswith("file://")


def files_in_flight(location: str) -> int:
    """How many files there to ask for at a time: one of a local disk, which answers at once."""
    return 1 if is_local(location) else FILES_IN_FLIGHT
