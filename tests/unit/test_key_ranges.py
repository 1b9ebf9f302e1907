"""Ranges of keys: what is cut where, and what stays where keys come and go."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigrl_core.errors import CorpusError
from sigrl_core.key_ranges import cut, name_of

pytestmark = pytest.mark.unit

KEYS = st.sets(st.text(max_size=4), max_size=60)


def ranges_of(keys: set[str], starts: list[str], most: int) -> list[tuple[str, str | None, list[str]]]:
    return [(found.start, found.held_by, rows) for found, rows in cut(sorted(keys), str, starts, most)]


@given(KEYS, st.integers(1, 9))
def test_at_first_ranges_are_as_long_as_they_may_be(keys: set[str], most: int) -> None:
    found = ranges_of(keys, [], most)
    assert [key for *_, rows in found for key in rows] == sorted(keys)
    assert all(len(rows) == most for *_, rows in found[:-1])
    assert all(1 <= len(rows) <= most for *_, rows in found)
    assert [start for start, *_ in found] == ["", *(rows[0] for *_, rows in found[1:])][: len(found)]
    assert all(held_by is None for _, held_by, _ in found)


@given(KEYS, KEYS, KEYS, st.integers(1, 9))
def test_keys_that_come_and_go_concern_their_ranges_alone(
    keys: set[str], come: set[str], go: set[str], most: int
) -> None:
    before = ranges_of(keys, [], most)
    now = (keys | come) - go
    after = ranges_of(now, [start for start, *_ in before], most)
    assert [key for *_, rows in after for key in rows] == sorted(now)
    starts = [start for start, *_ in after]
    assert starts == sorted(set(starts))
    held = {key: start for start, _, rows in before for key in rows}
    for start, held_by, rows in after:
        assert held_by is None or held_by in {start for start, *_ in before}
        assert all(held[key] == held_by for key in rows if key in held)  # where its row is found
        assert 1 <= len(rows) <= 2 * most
        if start != held_by:
            assert len(rows) <= most  # a piece of one that grew too long
    unchanged = {start: rows for start, _, rows in before if not {*rows} & go}
    for start, _, rows in after:
        if start in unchanged and not {*rows} & come - keys:
            assert rows == unchanged[start]
    assert ranges_of(now, starts, most) == [(start, start, rows) for start, _, rows in after]


def test_a_listing_out_of_order_is_refused() -> None:
    with pytest.raises(CorpusError, match="'a' is listed after 'b'"):
        list(cut(["b", "a"], str, [], 5))


@given(KEYS)
def test_names_differ_and_any_store_takes_them(keys: set[str]) -> None:
    names = {name_of(key) for key in keys}
    assert len(names) == len(keys)
    assert all(name.replace("-", "").replace("_", "").isalnum() and name.isascii() for name in names)
    assert all(len(name) < 80 for name in names)
