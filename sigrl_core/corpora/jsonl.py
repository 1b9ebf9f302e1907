"""One JSON object per line: `{"uri": "a/1.jpg", "labels": ["cat"], "negatives": ["dog"]}`.

Without `negatives`, labels that are not listed are absent; with it, they are unknown. Without `labels`, all labels are
unknown.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

from sigrl_core.corpora.listing import ListedImage, Listing, require_file
from sigrl_core.errors import CorpusError
from sigrl_core.io import storage

_KEYS = ("uri", "labels", "negatives")


def list_corpus(images: str, annotations: str | None = None) -> Listing:
    """Lists the lines in order.

    Raises:
        CorpusError: no file, no rows, or a malformed line; the message has the line.
    """
    return Listing(_list_images(require_file("jsonl", annotations)))


def _list_images(annotations: str) -> Iterator[ListedImage]:
    image = None
    with storage.open_input(annotations) as file:
        for number, line in enumerate(io.BufferedReader(file, 1 << 20), 1):
            if line.strip():
                image = _parse_line(line, f"{annotations}, line {number}")
                yield image
    if image is None:
        raise CorpusError(f'{annotations}: no rows; write one {{"uri": ..., "labels": [...]}} per line')


def _parse_line(line: bytes, where: str) -> ListedImage:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{where}: not valid JSON ({error}); write one object per line") from error
    if not isinstance(value, dict) or not isinstance(value.get("uri"), str) or not value["uri"]:
        raise CorpusError(f'{where}: expected an object with a text "uri", found {line.decode()[:80]}')
    if unknown := sorted(set(value) - set(_KEYS)):
        raise CorpusError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(_KEYS)}")
    return ListedImage(value["uri"], _read_names(value, "labels", where), _read_names(value, "negatives", where))


def _read_names(value: dict, key: str, where: str) -> tuple[str, ...] | None:
    names = value.get(key)
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CorpusError(f"{where}: {key} must be a list of texts, found {json.dumps(names)[:80]}")
    return tuple(name.strip() for name in names)
