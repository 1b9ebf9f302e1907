"""Columns or keys of lists of images (CSV, JSON Lines, Parquet), and cells of text that contain several labels."""

from __future__ import annotations

import ast
import difflib
import json
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from sigrl_core.errors import CorpusError

SEPARATOR = "|"

URI_NAMES = ("uri", "file_name", "filename", "path", "image_path", "image")
LABEL_NAMES = ("labels", "label", "tags", "classes", "class", "categories", "category")
_NAMES = {"uri": URI_NAMES, "labels": LABEL_NAMES, "negatives": ("negatives",)}

_NUM_SAMPLE_CELLS = 1000
_OTHER_SEPARATORS = (",", ";", " ")


class Columns(NamedTuple):
    """Names of the columns that are read, as the file writes them; None for one that it does not have."""

    uri: str
    labels: str | None = None
    negatives: str | None = None


def find_columns(names: Sequence[str], where: str, label_field: str | None = None, noun: str = "column") -> Columns:
    """Finds the columns of a list of images. The first of `URI_NAMES` and `LABEL_NAMES` takes precedence.

    Upper and lower case are equal, and so are `_`, `-` and a space. Other columns are ignored.

    Args:
        names: names of all columns.
        label_field: the column with the labels; None looks for one of `LABEL_NAMES`.
        noun: what the file calls a column.

    Raises:
        CorpusError: no column with the location of images; several columns for one purpose; or a column whose name is
            almost one of the usual names.
    """
    listed = ", ".join(map(repr, names[:10]))
    columns = {role: _choose(names, role, where, noun) for role in _NAMES if role != "labels" or label_field is None}
    if label_field is not None:
        if label_field not in names:
            raise CorpusError(f"{where}: no {noun} {label_field!r} (--label-field); found {listed}")
        columns["labels"] = label_field
    for name in names:
        similar = difflib.get_close_matches(normalise(name), _NAMES, n=1, cutoff=0.75)
        if similar and columns[similar[0]] is None:
            raise CorpusError(f"{where}: unknown {noun} {name!r}; did you mean {similar[0]!r}?")
    uri = columns.pop("uri")
    if uri is None:
        raise CorpusError(
            f"{where}: no {noun} 'uri'; found {listed}; rename the one with the location of images to 'uri'"
        )
    return Columns(uri, **columns)


def _choose(names: Sequence[str], role: str, where: str, noun: str) -> str | None:
    usual, *alternatives = _NAMES[role]
    same = [name for name in names if normalise(name) == usual]
    if len(same) > 1:
        raise CorpusError(f"{where}: {noun} {usual!r} twice; keep one")
    other = [name for name in names if normalise(name) in alternatives]
    if not same and len(other) > 1:
        raise CorpusError(
            f"{where}: {noun}s {', '.join(map(repr, other))} may each be {usual!r}; rename the right one to {usual!r}"
        )
    return (same or other or [None])[0]


def normalise(name: str) -> str:
    """Returns the form in which names of columns are compared."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def report_class_columns(where: str, classes: Collection[str], names: Sequence[str], uri: str) -> None:
    """Prints which columns are read as classes, and which are ignored."""
    if classes:
        ignored = [name for name in names if name != uri and name not in classes]
        print(
            f"{where}: columns read as one class each: {_shorten(list(classes))}; "
            f"columns ignored: {_shorten(ignored) or 'none'}",
            file=sys.stderr,
        )


def describe_columns(names: Sequence[str], noun: str = "column") -> str:
    """Returns where labels are looked for and which columns there are, for `Listing.describe_source`."""
    return f"a {noun} of labels is one of {', '.join(LABEL_NAMES)}, or --label-field; found {_shorten(list(names))}"


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


class LabelCells:
    """Reads cells of text with several labels: `cat|dog`, a JSON list, or the text of a Python list.

    If at least half of the first 1000 cells contain another usual separator and none contains `|`, a line on stderr
    gives an example and the flag that sets the separator.

    Args:
        where: the file.
        separator: text between two labels; None is `|`. A space is any white space.
    """

    def __init__(self, where: str, separator: str | None = None) -> None:
        self._where, self._separator = where, separator or SEPARATOR
        self._is_default = not separator
        self._num_cells = 0
        self._has_separator = False
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def parse(self, cell: str, column: str, where: str) -> tuple[str, ...]:
        """Returns the labels in a cell; none for an empty one.

        Raises:
            CorpusError: the cell starts with `[`, but is no list of texts.
        """
        if cell.startswith("["):
            return _parse_list(cell, column, where)
        if not cell:
            return ()
        if self._is_default and self._num_cells < _NUM_SAMPLE_CELLS:
            self._sample(cell)
        parts = cell.split() if self._separator.isspace() else cell.split(self._separator)
        return tuple(name.strip() for name in parts)

    def _sample(self, cell: str) -> None:
        self._num_cells += 1
        self._has_separator = self._has_separator or SEPARATOR in cell
        for other in _OTHER_SEPARATORS:
            if other in cell:
                self._counts[other] += 1
                self._examples.setdefault(other, cell)
        if self._num_cells == _NUM_SAMPLE_CELLS:
            self._report()

    def finish(self) -> None:
        """Reports the separator of a file that ended within the first 1000 cells."""
        if self._num_cells < _NUM_SAMPLE_CELLS:
            self._report()

    def _report(self) -> None:
        if self._has_separator:
            return
        for other in _OTHER_SEPARATORS:
            count = self._counts[other]
            if count and 2 * count >= self._num_cells:
                flag = f'--label-separator "{other}"'
                print(
                    f"{self._where}: {count} of the first {self._num_cells} cells with labels contain {other!r} and "
                    f"none contains {SEPARATOR!r}; {self._examples[other][:80]!r} is read as one label; if it is "
                    f"several, add {flag}",
                    file=sys.stderr,
                )
                return


def _parse_list(cell: str, column: str, where: str) -> tuple[str, ...]:
    try:
        names: Any = json.loads(cell)
    except (ValueError, RecursionError) as error:
        names = _parse_python_list(cell)
        if names is None:
            raise CorpusError(
                f"{where}: {column} is not a JSON list ({error}), found {_one_line(cell)}; write cat{SEPARATOR}dog"
            ) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CorpusError(f"{where}: {column} must be a list of texts, found {_one_line(cell)}")
    return tuple(name.strip() for name in names)


def _one_line(cell: str) -> str:
    """Returns the beginning of a cell for messages; a quoted cell may contain line breaks."""
    return " ".join(cell[:80].splitlines())


def _parse_python_list(cell: str) -> list[Any] | None:
    """Reads the text that pandas writes for a list, `['cat', 'dog']`; returns None for any other text."""
    try:
        value = ast.literal_eval(cell)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return value if isinstance(value, list) else None
