"""Directed edges between labels, by label name. They are counted in training data or listed by the user.

A file holds JSON rows (an array, or one object per line) `{"source": "knife", "target": "fork", "weight": 0.5}`: the
target attends to the source. The weight defaults to 1. An edge in both directions takes two rows. A checkpoint keeps
the edges that its model was trained with.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int8
from numpy.typing import NDArray

from sigrl_core.errors import StorageError, VocabularyError
from sigrl_core.io import storage
from sigrl_core.io.checksums import Pinned
from sigrl_core.labels.vocabulary import Vocabulary, parse_json_rows

_KEYS = ("source", "target", "weight")
_OLD_KEYS = ("hears", "label", "weight")
"""The same keys in version 0.1.0, whose files are still read."""
_EXAMPLE = '{"source": "knife", "target": "fork", "weight": 0.5}'


@dataclass(frozen=True)
class LabelEdges:
    """Weights above 0 by `(source, target)`: the target attends to the source. A label may attend to itself."""

    weights: dict[tuple[str, str], float]

    def matrix(self, vocabulary: Vocabulary) -> Float[NDArray, "C C"]:
        """Returns the weights as `[target, source]`, 0 for no edge; leaves out edges of labels not in `vocabulary`."""
        index, edges_CC = vocabulary.index, np.zeros((len(vocabulary), len(vocabulary)), np.float32)
        for (source, target), weight in self.weights.items():
            if source in index and target in index:
                edges_CC[index[target], index[source]] = weight
        return edges_CC

    @property
    def hash(self) -> str:
        """sha256 of the JSON that version 0.1.0 wrote, so that training started by it can be resumed."""
        rows = [{"label": edge[1], "hears": edge[0], "weight": weight} for edge, weight in self.weights.items()]
        return hashlib.sha256(_to_json(rows).encode()).hexdigest()

    def to_json(self) -> str:
        return _to_json(
            [{"source": edge[0], "target": edge[1], "weight": weight} for edge, weight in self.weights.items()]
        )

    @classmethod
    def parse(cls, text: str, where: str) -> LabelEdges:
        """Reads an edge list, with the keys of this version or of 0.1.0.

        Args:
            text: the file's content.
            where: the file's name, for errors.

        Raises:
            VocabularyError: not JSON rows of the form above, a weight that is not above 0, or an edge listed twice.
        """
        weights: dict[tuple[str, str], float] = {}
        for number, row in enumerate(_rows(text, where), 1):
            edge, weight = _edge(row, f"{where}, row {number}")
            if edge in weights:
                raise VocabularyError(
                    f"{where}, row {number}: the edge from {edge[0]!r} to {edge[1]!r} is listed twice; keep one row"
                )
            weights[edge] = weight
        if not weights:
            raise VocabularyError(f"{where}: no edges; write one per line, {_EXAMPLE}")
        return cls(weights)

    @classmethod
    def load(cls, uri: str, vocabulary: Vocabulary, expected: Pinned | None = None) -> LabelEdges:
        """Reads an edge list between labels of a vocabulary, local or s3://; see `parse`.

        Args:
            uri: the file.
            vocabulary: all labels that edges may name.
            expected: `hash` of the edges that a plan recorded; None takes any.
        """
        try:
            text = storage.read_bytes(uri).decode()
        except (StorageError, UnicodeDecodeError) as error:
            raise VocabularyError(f"{uri}: cannot be read ({error}); give graph.edges a file of edges") from error
        edges = cls.parse(text, uri)
        if expected is not None:
            expected.check(uri, "label edges", edges.hash, VocabularyError)
        known = set(vocabulary.names)
        if unknown := [name for edge in edges.weights for name in edge if name not in known]:
            raise VocabularyError(f"{uri}: label {unknown[0]!r} is not in the vocabulary of --data; correct its name")
        if any(_has_old_keys(row) for row in _rows(text, uri)):
            print(
                f'{uri}: the keys "label" and "hears" are deprecated; write "target" and "source", as in {_EXAMPLE}',
                file=sys.stderr,
            )
        return edges

    @classmethod
    def cooccurrence(
        cls, names: Sequence[str], states: Iterable[Int8[NDArray, "N C"]], threshold: float, neighbour_weight: float
    ) -> LabelEdges:
        """Counts edges in training data: label i attends to label j where P(j | i) >= threshold.

        P(j | i) is counted over images in which i is present and j is known. The labels that i attends to share the
        weight `neighbour_weight` equally and i keeps the rest for itself (re-weighting). A label without such
        neighbours attends to itself alone. Source: Chen et al. 2019, arXiv 1904.03582, eq. 6 to 8.

        Args:
            names: names of the C labels.
            states: label states of the training rows, in blocks.
        """
        both_CC, known_CC = np.zeros((2, len(names), len(names)))
        for states_NC in states:
            present_NC = (states_NC > 0).astype(np.float32)
            both_CC += present_NC.T @ present_NC
            known_CC += present_NC.T @ (states_NC != 0).astype(np.float32)
        attends_CC = both_CC / np.maximum(known_CC, 1) >= threshold
        np.fill_diagonal(attends_CC, False)
        weights: dict[tuple[str, str], float] = {}
        for i, attends_C in enumerate(attends_CC):
            neighbours = np.flatnonzero(attends_C).tolist()
            weights |= {(names[j], names[i]): neighbour_weight / len(neighbours) for j in neighbours}
            weights[names[i], names[i]] = 1 - neighbour_weight if neighbours else 1.0
        return cls(weights)


def _to_json(rows: list[dict]) -> str:
    return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"


def _rows(text: str, where: str) -> list:
    try:
        return parse_json_rows(text)
    except (ValueError, RecursionError) as error:
        raise VocabularyError(f"{where}: not valid JSON ({error}); write one edge per line, {_EXAMPLE}") from error


def _has_old_keys(row: object) -> bool:
    return isinstance(row, dict) and not row.keys().isdisjoint(_OLD_KEYS[:2])


def _edge(row: object, where: str) -> tuple[tuple[str, str], float]:
    keys = _OLD_KEYS if _has_old_keys(row) else _KEYS
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in keys[:2]):
        raise VocabularyError(f"{where}: found {json.dumps(row)[:80]}; expected {_EXAMPLE}")
    if unknown := sorted(set(row) - set(keys)):
        raise VocabularyError(f"{where}: unknown key {unknown[0]!r}; expected {', '.join(keys)}")
    weight = row.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= sys.float_info.max:
        raise VocabularyError(f"{where}: weight is {json.dumps(weight)[:80]}; expected a number above 0")
    return (row[keys[0]].strip(), row[keys[1]].strip()), float(weight)
