"""A sorted listing cut into ranges of keys that stay where they are when keys come and go.

Where a listing grows, a range grows with it up to twice the size that ranges are made in, and is cut beyond; so what
came since the last time concerns the ranges that it lies in, and no others.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from sigrl_core.errors import CorpusError

_Row = TypeVar("_Row")


class Range(NamedTuple):
    """The keys from `start` up to that of the next range.

    Attributes:
        start: the first range's is empty: it has every key before the second range.
        held_by: start of the range that had these keys the last time; None where there was no last time.
    """

    start: str
    held_by: str | None

    @property
    def name(self) -> str:
        """What its files are called: its start, as far as any store and disk takes it, and a hash of all of it."""
        return name_of(self.start)


def name_of(start: str) -> str:
    """See `Range.name`."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", start).strip("_")[:60] or "first"
    return f"{plain}-{hashlib.sha256(start.encode(errors='surrogateescape')).hexdigest()[:10]}"


def cut(
    rows: Iterable[_Row], key: Callable[[_Row], str], starts: Sequence[str], most: int
) -> Iterator[tuple[Range, list[_Row]]]:
    """Cuts a listing into ranges; a pure function, which holds the rows of two ranges at a time.

    Args:
        rows: in ascending order of their keys.
        key: of a row.
        starts: of the ranges of the last time, in ascending order; none the first time.
        most: rows of a new range at most; one of the last time may have grown to twice as many.

    Raises:
        CorpusError: the rows are not in order.
    """
    waiting = _in_order(rows, key)
    row = next(waiting, None)
    begin = list(starts) or [""]
    for start, end in zip(begin, [*begin[1:], None], strict=True):
        held: list[_Row] = []
        first, limit = start, 2 * most if starts else most
        held_by = start if starts else None
        while row is not None and (end is None or key(row) < end):
            if len(held) == limit:
                limit = most  # it is cut, so into pieces of that size
                while len(held) >= most:
                    yield Range(first, held_by), held[:most]
                    held = held[most:]
                    first = key(held[0] if held else row)
            held.append(row)
            row = next(waiting, None)
        if held:
            yield Range(first, held_by), held


def _in_order(rows: Iterable[_Row], key: Callable[[_Row], str]) -> Iterator[_Row]:
    last = ""
    for row in rows:
        if key(row) < last:
            raise CorpusError(f"{key(row)!r} is listed after {last!r}; a store that lists keys in order is needed")
        last = key(row)
        yield row
