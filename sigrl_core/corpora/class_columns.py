"""Tables with one column per class, whose cells are label states::

    filename,cat,dog
    a.jpg,1,0

1 or true is present, 0 or false absent, and an empty cell (null, nan) unknown, because nothing is recorded about the
label. The meaning of -1 depends on the table: unknown beside 0 or empty cells, as CheXpert marks what is uncertain;
absent in a table of 1 and -1 alone, as in CelebA.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from sigrl_core.data.label_states import ABSENT, PRESENT, UNKNOWN
from sigrl_core.errors import CorpusError

NUM_SAMPLE_ROWS = 1000
"""Rows of a table that decide which columns are classes; later rows must fit."""

OTHER_COLUMNS = frozenset(
    ("", "id", "index", "unnamed: 0", "width", "height", "split", "fold", "is_valid", "is_train", "is_test")
)
"""Columns, in lower case, that are no classes although 0 and 1 may be all of their values."""

_EMPTY, _TRUE, _FALSE, _MINUS_ONE = "", "1", "0", "-1"
_VALUES = {
    **dict.fromkeys(("", "none", "nan", "<na>"), _EMPTY),
    **dict.fromkeys(("1", "1.0", "true"), _TRUE),
    **dict.fromkeys(("0", "0.0", "-0.0", "false"), _FALSE),
    **dict.fromkeys(("-1", "-1.0"), _MINUS_ONE),
}


class ClassColumns(NamedTuple):
    """The class columns of a table.

    Attributes:
        positions: class name -> position of its column.
        minus_one: state that -1 means; None if -1 is not permitted.
    """

    positions: dict[str, int]
    minus_one: int | None = UNKNOWN


def find_class_columns(
    header: Sequence[str], sample: Sequence[Sequence[Any]], other_columns: Collection[str] = ()
) -> ClassColumns:
    """Finds the columns that hold label states alone, and what -1 means in them.

    Args:
        header: names of all columns.
        sample: the first rows, at most `NUM_SAMPLE_ROWS`; cells are texts or values.
        other_columns: columns that are no classes, in addition to `OTHER_COLUMNS`.

    Returns:
        The columns, without any if the table has none. A column without values in the sample is no class column.
    """
    positions, seen = dict[str, int](), set[str | None]()
    for position, name in enumerate(header):
        if name in other_columns or name.strip().lower() in OTHER_COLUMNS:
            continue
        values = {_value(row[position]) for row in sample}
        if None not in values and values != {_EMPTY} and values:
            positions[name.strip()] = position
            seen |= values
    return ClassColumns(positions, ABSENT if seen == {_TRUE, _MINUS_ONE} or seen == {_MINUS_ONE} else UNKNOWN)


def read_states(
    row: Sequence[Any] | Mapping[int, Any], columns: ClassColumns, where: str
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Returns `labels` and `negatives` of a row, as `ListedImage` has them; (None, None) if all cells are empty.

    Raises:
        CorpusError: a cell is no label state; the message has `where` and the column.
    """
    states = {name: _state(row[position], name, columns, where) for name, position in columns.positions.items()}
    present, absent = (tuple(name for name in states if states[name] == state) for state in (PRESENT, ABSENT))
    if not present and not absent:
        return None, None
    return present, None if len(present) + len(absent) == len(states) else absent


def _value(cell: Any) -> str | None:
    """Returns the kind of a cell; None if it is no label state."""
    return _VALUES.get(str(cell).strip().lower())


def _state(cell: Any, name: str, columns: ClassColumns, where: str) -> int:
    match _value(cell):
        case "1":
            return PRESENT
        case "0" if columns.minus_one != ABSENT:
            return ABSENT
        case "-1" if columns.minus_one is not None:
            return columns.minus_one
        case "":
            return UNKNOWN
    expected = {None: "1, 0 or empty", ABSENT: "1, -1 or empty"}.get(columns.minus_one, "1, 0, -1 or empty")
    raise CorpusError(
        f"{where}: column {name!r} is {str(cell).strip()[:80]!r}, expected {expected} as in a table with one column "
        "per class; correct the cell, or remove the column"
    )
