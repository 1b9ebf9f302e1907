"""One JSON object per line: `{"uri": "a/1.jpg", "labels": ["cat"], "negatives": ["dog"]}`.

Without `negatives`, labels not listed are absent; with it, they are unknown. Without `labels` too, all are unknown.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

from sigrl_core import storage
from sigrl_core.corpora.listing import Listing, Row, require_file
from sigrl_core.errors import CorpusError

_KEYS = ("uri", "labels", "negatives")


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists the lines in their order.

    Raises:
        CorpusError: no file, no rows, a line that is not such an object; names the line.
    """
    return Listing(_rows(require_file("jsonl", annotations)))


def _rows(annotations: str) -> Iterator[Row]:
    row = None
    with storage.reading(annotations) as file:
        for number, line in enumerate(io.BufferedReader(file, 1 << 20), 1):
            if line.strip():
                row = _row(line, f"{annotations}, line {number}")
                yield row
    if row is None:
        raise CorpusError(f'{annotations}: no rows; write one {{"uri": ..., "labels": [...]}} per line')


def _row(line: bytes, where: str) -> Row:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{where}: not valid JSON ({error}); write one object per line") from error
    if not isinstance(value, dict) or not isinstance(value.get("uri"), str) or not value["uri"]:
        raise CorpusError(f'{where}: expected an object with a text "uri", found {line.decode()[:80]}')
    if unknown := sorted(set(value) - set(_KEYS)):
        raise CorpusError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(_KEYS)}")
    return Row(value["uri"], _names(value, "labels", where), _names(value, "negatives", where))


def _names(value: dict, key: str, where: str) -> tuple[str, ...] | None:
    names = value.get(key)
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CorpusError(f"{where}: {key} must be a list of texts, found {json.dumps(names)[:80]}")
    return tuple(name.strip() for name in names)
