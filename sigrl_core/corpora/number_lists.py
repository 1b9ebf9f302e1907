"""Lists of numbers that are the labels of an image: class numbers, `[0, 2]`, or one value per class, `[1, 0, 1]`.

The two forms cannot always be told apart. The type decides where it can: real numbers and truth values are one value
per class. Otherwise the first lists decide. They are one value per class if all have the same length (the number of
classes, if that is known), contain only 0 and 1, and one list contains a number twice, which a list of class numbers
does not. They are class numbers if they have different lengths or other numbers. Everything else is refused, with the
flag that decides. Lists that are read as one value per class must all have that form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple, TypeVar

from sigrl_core.corpora.listing import class_name
from sigrl_core.errors import CorpusError

LabelNumbers = Literal["classes", "multi-hot"]
"""Meaning of a list of numbers: numbers of the classes that are present, or one value (1 or 0) per class."""

_NUM_SAMPLE = 1000
_MAX_SAMPLE_SIZE = 50_000_000  # characters of all labels of a sample

_Row = TypeVar("_Row")


class NumberLists(NamedTuple):
    """How lists of numbers become labels.

    Attributes:
        classes: class names; None uses the numbers.
        meaning: what the lists are; None if the lists themselves decide.
        are_declared: whether the file's schema says that they are class numbers.
    """

    classes: Sequence[str] | None = None
    meaning: LabelNumbers | None = None
    are_declared: bool = False

    def resolve(
        self, rows: Iterator[_Row], cell_of: Callable[[_Row], Any], where: str
    ) -> Iterator[tuple[_Row, NumberLists]]:
        """Yields every row with the form of its lists.

        If the lists decide, at most 1000 rows are held in memory, from the first one with a list of numbers on.

        Args:
            cell_of: function that returns the labels of a row; only lists of numbers matter.

        Raises:
            CorpusError: the form cannot be decided.
        """
        decided = self
        for row in rows:
            if decided.meaning is None and _is_number_list(cell_of(row)):
                sample = take_sample(row, rows, lambda each: len(str(cell_of(each))))
                decided = self._replace(meaning=self._decide([cell_of(each) for each in sample], where))
                for each in sample:
                    yield each, decided
            else:
                yield row, decided

    def _decide(self, cells: Sequence[Any], where: str) -> LabelNumbers:
        lists = [cell for cell in cells if _is_number_list(cell)]
        if any(isinstance(value, float | bool) for value in chain.from_iterable(lists)):
            return "multi-hot"
        lengths = {len(each) for each in lists}
        length = max(lengths)
        if len(lengths) > 1 or not set(chain.from_iterable(lists)) <= {0, 1}:
            return "classes"
        num_classes = None if self.classes is None else len(self.classes)
        may_be_multi_hot = num_classes in (None, length) and length > 1
        has_repeated = any(len(set(each)) < length for each in lists)
        if not may_be_multi_hot and (self.are_declared or not has_repeated):
            return "classes"
        if self.are_declared and not has_repeated:
            return "classes"
        if may_be_multi_hot and has_repeated and not self.are_declared:
            return "multi-hot"
        names = "" if num_classes is None else f" ({num_classes} class names)"
        raise CorpusError(
            f"{where}: the first {len(lists)} labels are lists of {length} numbers 0 or 1{names}, for example "
            f"{lists[0]}; they may be class numbers or one value per class; add --label-numbers classes or "
            "--label-numbers multi-hot"
        )

    def read(self, cell: Any, where: str) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
        """Returns `labels` and `negatives` of a cell: a name, a class number, or a list of one of them.

        Raises:
            CorpusError: a null, a number without a class name, or a list that does not have the form.
        """
        listed = cell if isinstance(cell, list) else [cell]
        if None in listed:
            raise CorpusError(f"{where}: a label is null; leave it out")
        if self.meaning == "multi-hot" and isinstance(cell, list) and not any(isinstance(each, str) for each in cell):
            return self._read_multi_hot(cell, where)
        names = (each.strip() if isinstance(each, str) else self._class_name(each, where) for each in listed)
        return tuple(names), None

    def _class_name(self, number: Any, where: str) -> str:
        if isinstance(number, float):
            raise CorpusError(f"{where}: {number} is no class number; --label-numbers classes needs whole numbers")
        return class_name(int(number), self.classes, where)

    def _read_multi_hot(self, values: list[Any], where: str) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
        if not set(values) <= {0, 1} or (self.classes is not None and len(self.classes) != len(values)):
            count = "" if self.classes is None else f"{len(self.classes)} "
            raise CorpusError(
                f"{where}: found {str(values)[:80]}, expected {count}numbers 0 or 1, one per class; if they are class "
                "numbers, add --label-numbers classes"
            )
        names = [class_name(number, self.classes, where) for number in range(len(values))]
        present, absent = (
            tuple(name for name, each in zip(names, values, strict=True) if each == value) for value in (1, 0)
        )
        return present, absent if self.classes is None else None


def take_sample(first: _Row, rows: Iterator[_Row], size_of: Callable[[_Row], int]) -> list[_Row]:
    """Returns a row and those after it, at most 1000 and not many more than 50 MB."""
    sample, size = [first], size_of(first)
    while len(sample) < _NUM_SAMPLE and size < _MAX_SAMPLE_SIZE and (row := next(rows, None)) is not None:
        sample.append(row)
        size += size_of(row)
    return sample


def _is_number_list(cell: Any) -> bool:
    return isinstance(cell, list) and bool(cell) and all(isinstance(value, int | float) for value in cell)
