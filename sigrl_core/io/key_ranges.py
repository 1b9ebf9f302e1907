"""Cuts a sorted listing into key ranges that stay the same when keys are added or removed.

A range grows with the listing up to twice the size of a new range, and is cut only beyond that. A change of the listing
thus affects the ranges that contain the changed keys, and no others.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from sigrl_core.errors import CorpusError

_Item = TypeVar("_Item")


class Range(NamedTuple):
    """The keys from `start` up to the start of the next range.

    Attributes:
        start: first key; empty for the first range, which contains every key before the second range.
        previous_range: start of the range that contained these keys in the previous run; None if there was none.
    """

    start: str
    previous_range: str | None


def range_name(start: str) -> str:
    """Returns the stem of a range's file names: the characters of `start` that every store and disk accepts, and a hash
    of the whole `start`, which keeps the names of different ranges apart."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", start).strip("_")[:60] or "first"
    return f"{plain}-{hashlib.sha256(start.encode(errors='surrogateescape')).hexdigest()[:10]}"


def cut_ranges(
    items: Iterable[_Item], key: Callable[[_Item], str], starts: Sequence[str], max_items: int
) -> Iterator[tuple[Range, list[_Item]]]:
    """Cuts a listing into ranges. A pure function; memory holds the items of two ranges at a time.

    Args:
        items: the listing, in ascending order of keys.
        key: returns the key of an item.
        starts: starts of the previous run's ranges, in ascending order; empty for the first run.
        max_items: maximum number of items in a new range; a range of the previous run may grow to twice as many.

    Raises:
        CorpusError: the items are not in order.
    """
    remaining = _check_order(items, key)
    item = next(remaining, None)
    range_starts = list(starts) or [""]
    for start, end in zip(range_starts, [*range_starts[1:], None], strict=True):
        range_items: list[_Item] = []
        first, limit = start, 2 * max_items if starts else max_items
        previous_range = start if starts else None
        while item is not None and (end is None or key(item) < end):
            if len(range_items) == limit:
                limit = max_items  # the range is cut into ranges of the size of new ones
                while len(range_items) >= max_items:
                    yield Range(first, previous_range), range_items[:max_items]
                    range_items = range_items[max_items:]
                    first = key(range_items[0] if range_items else item)
            range_items.append(item)
            item = next(remaining, None)
        if range_items:
            yield Range(first, previous_range), range_items


def _check_order(items: Iterable[_Item], key: Callable[[_Item], str]) -> Iterator[_Item]:
    """Yields the items; raises CorpusError if they are not in ascending order."""
    last = ""
    for item in items:
        if key(item) < last:
            raise CorpusError(
                f"{key(item)!r} is listed after {last!r}; expected keys in ascending order, use a store that sorts them"
            )
        last = key(item)
        yield item
