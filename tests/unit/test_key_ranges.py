"""Key ranges: where a listing is cut, and which ranges stay the same when keys are added or removed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigrl_core.errors import CorpusError
from sigrl_core.io.key_ranges import cut_ranges, range_name

pytestmark = pytest.mark.unit

KEYS = st.sets(st.text(max_size=4), max_size=60)


def ranges_of(keys: set[str], starts: list[str], max_items: int) -> list[tuple[str, str | None, list[str]]]:
    return [(each.start, each.previous_range, rows) for each, rows in cut_ranges(sorted(keys), str, starts, max_items)]


@given(KEYS, st.integers(1, 9))
def test_new_ranges_have_the_maximum_size(keys: set[str], max_items: int) -> None:
    ranges = ranges_of(keys, [], max_items)
    assert [key for *_, rows in ranges for key in rows] == sorted(keys)
    assert all(len(rows) == max_items for *_, rows in ranges[:-1])
    assert all(1 <= len(rows) <= max_items for *_, rows in ranges)
    assert [start for start, *_ in ranges] == ["", *(rows[0] for *_, rows in ranges[1:])][: len(ranges)]
    assert all(previous_range is None for _, previous_range, _ in ranges)


@given(KEYS, KEYS, KEYS, st.integers(1, 9))
def test_added_and_removed_keys_affect_their_ranges_alone(
    keys: set[str], added: set[str], removed: set[str], max_items: int
) -> None:
    before = ranges_of(keys, [], max_items)
    now = (keys | added) - removed
    after = ranges_of(now, [start for start, *_ in before], max_items)
    assert [key for *_, rows in after for key in rows] == sorted(now)
    starts = [start for start, *_ in after]
    assert starts == sorted(set(starts))
    held = {key: start for start, _, rows in before for key in rows}
    for start, previous_range, rows in after:
        assert previous_range is None or previous_range in {start for start, *_ in before}
        assert all(held[key] == previous_range for key in rows if key in held)  # the range whose files hold the rows
        assert 1 <= len(rows) <= 2 * max_items
        if start != previous_range:
            assert len(rows) <= max_items  # a range that was cut
    unchanged = {start: rows for start, _, rows in before if not {*rows} & removed}
    for start, _, rows in after:
        if start in unchanged and not {*rows} & added - keys:
            assert rows == unchanged[start]
    assert ranges_of(now, starts, max_items) == [(start, start, rows) for start, _, rows in after]


def test_a_listing_out_of_order_is_refused() -> None:
    with pytest.raises(CorpusError, match="'a' is listed after 'b'"):
        list(cut_ranges(["b", "a"], str, [], 5))


@given(KEYS)
def test_names_differ_and_suit_any_store(keys: set[str]) -> None:
    names = {range_name(key) for key in keys}
    assert len(names) == len(keys)
    assert all(name.replace("-", "").replace("_", "").isalnum() and name.isascii() for name in names)
    assert all(len(name) < 80 for name in names)
