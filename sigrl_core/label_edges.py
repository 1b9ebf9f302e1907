"""Edges between labels by name: counted in training data, or drawn by the user; the checkpoint keeps them.

A file holds JSON rows (an array, or one object per line) `{"label": "fork", "hears": "knife", "weight": 0.5}`; the
weight is 1 where there is none. An edge has one direction: write two rows for both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int8
from numpy.typing import NDArray

from sigrl_core import storage
from sigrl_core.errors import StorageError, VocabularyError
from sigrl_core.vocabulary import Vocabulary, json_rows


@dataclass(frozen=True)
class LabelEdges:
    """(label, label it hears) -> weight above 0; a label may hear itself."""

    weights: dict[tuple[str, str], float]

    def matrix(self, vocabulary: Vocabulary) -> Float[NDArray, "C C"]:
        """`[i, j]`: how much label i hears label j, 0 for not at all; edges of labels not asked are left out."""
        index, edges_CC = vocabulary.index, np.zeros((len(vocabulary), len(vocabulary)), np.float32)
        for (label, heard), weight in self.weights.items():
            if label in index and heard in index:
                edges_CC[index[label], index[heard]] = weight
        return edges_CC

    def to_json(self) -> str:
        rows = [{"label": label, "hears": heard, "weight": weight} for (label, heard), weight in self.weights.items()]
        return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def parse(cls, text: str, where: str) -> LabelEdges:
        """Reads an edge list.

        Raises:
            VocabularyError: not JSON rows of the form above, a weight that is not above 0, or an edge listed twice.
        """
        try:
            rows = json_rows(text)
        except json.JSONDecodeError as error:
            raise VocabularyError(f"{where}: not valid JSON ({error}); write one edge per line, {_EXAMPLE}") from error
        weights: dict[tuple[str, str], float] = {}
        for number, row in enumerate(rows, 1):
            edge, weight = _edge(row, f"{where}, row {number}")
            if edge in weights:
                raise VocabularyError(f"{where}, row {number}: {edge[0]} hears {edge[1]} twice; keep one of the rows")
            weights[edge] = weight
        if not weights:
            raise VocabularyError(f"{where}: no edges found; write one per line, {_EXAMPLE}")
        return cls(weights)

    @classmethod
    def load(cls, uri: str, vocabulary: Vocabulary) -> LabelEdges:
        """Reads an edge list between labels of a vocabulary, local or s3://; see `parse`."""
        try:
            edges = cls.parse(storage.read_bytes(uri).decode(), uri)
        except (StorageError, UnicodeDecodeError) as error:
            raise VocabularyError(f"{uri}: cannot be read ({error}); graph.edges takes a file of edges") from error
        known = set(vocabulary.names)
        if strange := [name for edge in edges.weights for name in edge if name not in known]:
            raise VocabularyError(f"{uri}: label {strange[0]!r} is not in the vocabulary of --data; correct its name")
        return edges

    @classmethod
    def cooccurrence(
        cls, names: Sequence[str], states: Iterable[Int8[NDArray, "N C"]], threshold: float, others: float
    ) -> LabelEdges:
        """Edges from training data: i hears j where P(j | i) >= threshold.

        The `others` that a label hears share a weight of `others`, itself keeps the rest (re-weighting); a label that
        none follows hears only itself. P(j | i) is counted over pictures that show i and in which j is known.
        Source: Chen et al. 2019, arXiv 1904.03582, eq. 6 to 8.

        Args:
            names: of the C labels.
            states: label states, some rows at a time.
        """
        both_CC, known_CC = np.zeros((2, len(names), len(names)))
        for states_NC in states:
            present_NC = (states_NC > 0).astype(np.float32)
            both_CC += present_NC.T @ present_NC
            known_CC += present_NC.T @ (states_NC != 0).astype(np.float32)
        follows_CC = both_CC / np.maximum(known_CC, 1) >= threshold
        np.fill_diagonal(follows_CC, False)
        weights: dict[tuple[str, str], float] = {}
        for i, follows_C in enumerate(follows_CC):
            heard = np.flatnonzero(follows_C).tolist()
            weights |= {(names[i], names[j]): others / len(heard) for j in heard}
            weights[names[i], names[i]] = 1 - others if len(heard) else 1.0
        return cls(weights)


_KEYS = ("label", "hears", "weight")
_EXAMPLE = '{"label": "fork", "hears": "knife", "weight": 0.5}'


def _edge(row: object, where: str) -> tuple[tuple[str, str], float]:
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in _KEYS[:2]):
        raise VocabularyError(f"{where}: found {json.dumps(row)[:80]}; expected {_EXAMPLE}")
    if unknown := sorted(set(row) - set(_KEYS)):
        raise VocabularyError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(_KEYS)}")
    weight = row.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise VocabularyError(f"{where}: weight is {weight!r}; expected a number above 0")
    return (row["label"].strip(), row["hears"].strip()), float(weight)
