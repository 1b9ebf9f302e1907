"""Reads JSON of other tools: whole documents up to a limit, and files with one object per line."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

from sigrl_core.errors import CorpusError
from sigrl_core.io import storage

MAX_DOCUMENT_BYTES = 500_000_000
"""Larger documents are refused; parsed JSON takes several times its size in memory."""

MAX_LINE_BYTES = 10_000_000


def read_document(where: str, form: str) -> Any:
    """Reads a JSON document.

    Args:
        form: name of the expected format, for messages.

    Raises:
        CorpusError: not JSON, or not valid Unicode.
        StorageError: as `storage.read_bytes`; larger than `MAX_DOCUMENT_BYTES`.
    """
    return _parse(storage.read_bytes(where, MAX_DOCUMENT_BYTES), where, f"give {form}")


def read_objects(where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields location (with the line) and object of every line that is not blank; memory holds one line at a time.

    Raises:
        CorpusError: a line is not a JSON object, or longer than `MAX_LINE_BYTES`; there are no objects.
    """
    number, is_empty = 0, True
    with storage.open_input(where) as file:
        reader = io.BufferedReader(file, 1 << 20)
        while line := reader.readline(MAX_LINE_BYTES + 1):
            number += 1
            position = f"{where}, line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise CorpusError(f"{position}: longer than {MAX_LINE_BYTES} bytes; expected one object per line")
            if not line.strip():
                continue
            is_empty = False
            value = _parse(line, position, "write one object per line")
            if not isinstance(value, dict):
                raise CorpusError(f"{position}: expected an object, found {show(value)}")
            yield position, value
    if is_empty:
        raise CorpusError(f"{where}: no lines; expected one object per line")


def _parse(data: bytes, where: str, next_step: str) -> Any:
    try:
        value = json.loads(data.decode("utf-8-sig"))
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()  # half of a pair of code units is no text
    except (ValueError, RecursionError) as error:  # the message has the line
        raise CorpusError(f"{where}: not valid JSON ({error}); {next_step}") from error
    return value


def show(value: Any) -> str:
    """Returns the beginning of a value, for messages."""
    return json.dumps(value)[:80]


def require_text(value: Any, where: str) -> str:
    """Returns a text that is not empty, stripped; raises CorpusError for other values."""
    if not isinstance(value, str) or not value.strip():
        raise CorpusError(f"{where}: expected a text, found {show(value)}")
    return value.strip()


def require_list(value: Any, where: str, form: str) -> list[Any]:
    """Returns a list; raises CorpusError for other values.

    Args:
        form: what the list must be, for the message.
    """
    if not isinstance(value, list):
        raise CorpusError(f"{where}: expected {form}, found {show(value)}")
    return value


def unique_names(names: Iterator[str]) -> tuple[str, ...]:
    """Returns names in order, each once: several objects of an image may have the same label."""
    return tuple(dict.fromkeys(names))
