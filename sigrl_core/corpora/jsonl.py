"""One JSON object per line: `{"uri": "a/1.jpg", "labels": ["cat"], "negatives": ["dog"]}`.

`columns.py` has other usual names of these keys (`file_name`, `label`); other keys are ignored. Labels are a list of
texts, or one text in a key with a singular name (`"label": "cat"`). Without `negatives`, labels that are not listed are
absent; with it, they are unknown. Without `labels`, all labels are unknown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

from sigrl_core.corpora.columns import Columns, describe_columns, find_columns
from sigrl_core.corpora.compressed import open_decompressed
from sigrl_core.corpora.listing import ListedImage, Listing, require_file
from sigrl_core.errors import CorpusError

_SINGULAR = ("label", "class", "category")
_MAX_KEYS = 1000  # combinations of keys that are remembered


def list_corpus(images: str, annotations: str | None = None, *, label_field: str | None = None) -> Listing:
    """Lists the lines in order.

    Args:
        label_field: the key with the labels.

    Raises:
        CorpusError: no file, no rows, or a malformed line; the message has the line.
    """
    where = require_file("jsonl", annotations)
    return Listing(_list_images(where, label_field), describe_source=partial(_describe_source, where))


def _list_images(annotations: str, label_field: str | None) -> Iterator[ListedImage]:
    image = None
    parse = _Parser(label_field)
    with open_decompressed(annotations) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                image = parse(line, f"{annotations}, line {number}")
                yield image
    if image is None:
        raise CorpusError(f'{annotations}: no rows; write one {{"uri": ..., "labels": [...]}} per line')
    if label_field is not None and not parse.has_label_field:
        raise CorpusError(f"{annotations}: no line has the key {label_field!r} (--label-field); check its name")


def _describe_source(annotations: str) -> str:
    with open_decompressed(annotations) as file:
        first = next((line for line in file if line.strip()), b"{}")
    return describe_columns(list(json.loads(first.decode("utf-8-sig"))), "key")


class _Parser:
    """Parses lines; remembers which keys hold location and labels, for each combination of keys."""

    def __init__(self, label_field: str | None) -> None:
        self._label_field = label_field
        self._keys: dict[tuple[str, ...], Columns] = {}
        self.has_label_field = False

    def __call__(self, line: bytes, where: str) -> ListedImage:
        try:
            value = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{where}: not valid JSON ({error}); write one object per line") from error
        if not isinstance(value, dict):
            raise CorpusError(f'{where}: expected an object with a text "uri", found {line.decode()[:80]}')
        keys = self._find_keys(tuple(value), where)
        uri = value[keys.uri]
        if not isinstance(uri, str) or not uri:
            raise CorpusError(f'{where}: expected an object with a text "uri", found {line.decode()[:80]}')
        self.has_label_field = self.has_label_field or self._label_field in value
        labels, negatives = (self._read_names(value, key, where) for key in (keys.labels, keys.negatives))
        return ListedImage(uri, labels, negatives)

    def _find_keys(self, names: tuple[str, ...], where: str) -> Columns:
        if (keys := self._keys.get(names)) is None:
            if len(self._keys) >= _MAX_KEYS:
                self._keys.clear()
            all_names = names if self._label_field in (None, *names) else (*names, self._label_field)
            keys = self._keys[names] = find_columns(all_names, where, self._label_field, "key")
        return keys

    def _read_names(self, value: dict, key: str | None, where: str) -> tuple[str, ...] | None:
        names = None if key is None else value.get(key)
        if key is None or names is None:
            return None
        if isinstance(names, str) and (key.lower() in _SINGULAR or key == self._label_field):
            names = [names]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise CorpusError(f"{where}: {key} must be a list of texts, found {json.dumps(names)[:80]}")
        return tuple(name.strip() for name in names)
