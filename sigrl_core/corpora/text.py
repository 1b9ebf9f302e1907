"""Text files in which labels are written down: read line by line, every error with its line."""

from __future__ import annotations

import csv
import io
from collections.abc import Generator, Iterator

from sigrl_core import storage
from sigrl_core.errors import CorpusError

_BUFFER_BYTES = 1 << 20  # a request of an object store brings as many


def lines(location: str) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of every line that is not blank, without the spaces around it.

    Raises:
        CorpusError: a line that is not UTF-8.
    """
    return ((number, text) for number, line in enumerate(_decoded(location), 1) if (text := line.strip()))


def fields(location: str, form: str) -> Generator[tuple[int, list[str]]]:
    """Number and words of every line that is not blank.

    Args:
        form: what a line must have, as `image_id label ...`; so many words, or more where it ends in dots.

    Raises:
        CorpusError: a line with another number of words.
    """
    expected = form.split()
    open_end = expected[-1] == "..."
    least = len(expected) - open_end
    for number, text in lines(location):
        words = text.split()
        if len(words) < least or (len(words) > least and not open_end):
            raise CorpusError(f"{location}, line {number}: expected `{form}`, found {text[:80]!r}")
        yield number, words


def names(location: str) -> list[str]:
    """One name a line, at least one."""
    found = [text for _, text in lines(location)]
    if not found:
        raise CorpusError(f"{location}: no names in it; write one a line")
    return found


def records(location: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every record of a CSV file, its header too.

    Raises:
        CorpusError: a record that is no CSV, or not UTF-8.
    """
    reader = csv.reader(_decoded(location), strict=True)
    try:
        for record in reader:
            if record:
                yield reader.line_num, record
    except csv.Error as error:
        where = f"{location}, line {reader.line_num}"
        raise CorpusError(f"{where}: not valid CSV ({error}); save it with commas between its fields") from error


def _decoded(location: str) -> Iterator[str]:
    with storage.reading(location) as file:
        for number, line in enumerate(io.BufferedReader(file, _BUFFER_BYTES), 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise CorpusError(f"{location}, line {number}: not UTF-8 ({error}); save it as plain text") from error
