import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigrl_core.parts import Part, plan_parts

pytestmark = pytest.mark.unit


@given(st.integers(0, 5000), st.integers(1, 700))
def test_parts_cover_every_row_once_in_order(num_rows: int, rows_per_part: int) -> None:
    parts = plan_parts(num_rows, rows_per_part)
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(num_rows))
    assert [part.index for part in parts] == list(range(len(parts)))
    assert all(part.num_rows == rows_per_part for part in parts[:-1])
    assert sorted(part.name for part in parts) == [part.name for part in parts]


def test_names_and_refusals() -> None:
    assert Part(12, 0, 1).name == "00012"
    assert plan_parts(5, 2)[-1] == Part(2, 4, 5)
    with pytest.raises(ValueError, match="expected"):
        plan_parts(5, 0)
