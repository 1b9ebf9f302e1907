"""Annotation formats of other tools: each reader against what its tool writes, random annotations and damaged files."""

import pytest

from sigrl_core.corpora.class_columns import ClassColumns, find_class_columns, read_states
from sigrl_core.data.label_states import ABSENT, UNKNOWN
from sigrl_core.errors import CorpusError

pytestmark = pytest.mark.unit


# ---- one column per class ----


def test_class_columns() -> None:
    header = ["uri", "cat", " dog", "note", "width", "empty"]
    rows = [["a.jpg", "1", "0.0", "x", "1", ""], ["b.jpg", "", "-1.0", "1", "0", ""]]
    columns = find_class_columns(header, rows)
    assert columns == ClassColumns({"cat": 1, "dog": 2}, UNKNOWN)
    assert read_states(rows[0], columns, "line 2") == (("cat",), None)
    assert read_states(rows[1], columns, "line 3") == (None, None)
    assert read_states(["c.jpg", True, None], columns, "line 4") == (("cat",), ())
    assert read_states(["c.jpg", float("nan"), False], columns, "line 4") == ((), ("dog",))
    with pytest.raises(CorpusError, match=r"line 9: column 'cat' is '2', expected 1, 0, -1 or empty"):
        read_states(["c.jpg", "2", "1"], columns, "line 9")
    assert find_class_columns(["uri", "cat"], [["a", "cat"]]).positions == {}
    assert find_class_columns(["uri", "cat", "dog"], [["1", "0", "1"]], ["uri"]).positions == {"cat": 1, "dog": 2}


def test_minus_one_is_absent_in_a_table_of_1_and_minus_1_alone() -> None:
    columns = find_class_columns(["uri", "cat", "dog"], [["a", 1, -1], ["b", -1, -1]])
    assert columns.minus_one == ABSENT
    assert read_states(["b", -1, -1], columns, "") == ((), None)
    with pytest.raises(CorpusError, match="expected 1, -1 or empty"):
        read_states(["b", 0, -1], columns, "")
    with pytest.raises(CorpusError, match="expected 1, 0 or empty"):
        read_states(["b", 0, -1], columns._replace(minus_one=None), "")
