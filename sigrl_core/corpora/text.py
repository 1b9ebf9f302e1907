"""Reads text and CSV files, also compressed by gzip, line by line; every error has the line number."""

from __future__ import annotations

import csv
from collections.abc import Generator, Iterator
from itertools import chain

from sigrl_core.corpora.compressed import open_decompressed
from sigrl_core.errors import CorpusError


def read_lines(location: str) -> Iterator[tuple[int, str]]:
    """Yields number (from 1) and stripped text of every line that is not blank.

    Raises:
        CorpusError: a line is not UTF-8.
    """
    return ((number, text) for number, line in enumerate(_decode_lines(location), 1) if (text := line.strip()))


def read_fields(location: str, form: str) -> Generator[tuple[int, list[str]]]:
    """Yields number and words of every line that is not blank.

    Args:
        form: names of the words, as `image_id label ...`; with dots at the end, a line may have more words.

    Raises:
        CorpusError: a line has another number of words.
    """
    expected = form.split()
    open_end = expected[-1] == "..."
    min_words = len(expected) - open_end
    for number, text in read_lines(location):
        words = text.split()
        if len(words) < min_words or (len(words) > min_words and not open_end):
            raise CorpusError(f"{location}, line {number}: expected `{form}`, found {text[:80]!r}")
        yield number, words


def read_names(location: str) -> list[str]:
    """Reads a file with one name per line; raises CorpusError if it has none."""
    names = [text for _, text in read_lines(location)]
    if not names:
        raise CorpusError(f"{location}: no names in it; write one per line")
    return names


def read_records(location: str, delimiters: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Yields line number and fields of every record of a CSV file, including the header.

    Args:
        delimiters: characters that may separate fields; the first one in the first line does.

    Raises:
        CorpusError: a record is not valid CSV, or not UTF-8.
    """
    lines = _decode_lines(location)
    first = next(lines, "")
    delimiter = next((character for character in delimiters if character in first), delimiters[0])
    reader = csv.reader(chain([first], lines), strict=True, delimiter=delimiter)
    try:
        for record in reader:
            if record:
                yield reader.line_num, record
    except csv.Error as error:
        where = f"{location}, line {reader.line_num}"
        raise CorpusError(f"{where}: not valid CSV ({error}); save it with commas between its fields") from error


def _decode_lines(location: str) -> Iterator[str]:
    with open_decompressed(location) as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise CorpusError(f"{location}, line {number}: not UTF-8 ({error}); save it as plain text") from error
