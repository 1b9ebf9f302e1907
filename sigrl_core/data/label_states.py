"""Label states of images: present, absent or unknown; their encoding in shard rows, and counts.

Before states come from annotations, they are evidence: what one annotated row says of each label, as bits. Evidence of
several rows of one image is united by a bitwise or, so neither order nor repetition of rows matters.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from sigrl_core.errors import ShardError
from sigrl_core.labels.vocabulary import Vocabulary

PRESENT, ABSENT, UNKNOWN = 1, -1, 0

LISTED_PRESENT, LISTED_ABSENT, NOT_LISTED = 1, 2, 4
"""Bits of evidence. `NOT_LISTED`: the row lists all labels that are present, so this one is absent unless listed."""


def states_of(evidence: np.ndarray) -> np.ndarray:
    """Returns the states [..., C] (int8) that follow from evidence [..., C] (uint8).

    A label is present if it is listed as present, and absent if it is listed as absent. A label that is listed as both
    is a conflict, and unknown. A label that no row lists is absent if a row implies it, else unknown.
    """
    is_present, is_absent = evidence & LISTED_PRESENT > 0, evidence & LISTED_ABSENT > 0
    states = np.where(evidence & NOT_LISTED, np.int8(ABSENT), np.int8(UNKNOWN))
    states[is_absent] = ABSENT
    states[is_present] = PRESENT
    states[is_present & is_absent] = UNKNOWN
    return states


def encode_states(states_C: np.ndarray) -> bytes:
    """Encodes label states for a shard row: one signed byte per label."""
    return np.asarray(states_C, dtype=np.int8).tobytes()


def decode_states(column: pa.Array | pa.ChunkedArray, num_labels: int) -> np.ndarray:
    """Decodes the column `label_states` to int8 [N, C].

    Raises:
        ShardError: the length of a row is not `num_labels`.
    """
    rows = column.to_pylist()
    for number, row in enumerate(rows):
        if len(row) != num_labels:
            raise ShardError(
                f"row {number}: {len(row)} label states, but the vocabulary has {num_labels} labels; "
                "run preprocess.py again"
            )
    return np.frombuffer(b"".join(rows), dtype=np.int8).reshape(len(rows), num_labels)


def count_states(states_NC: np.ndarray, vocabulary: Vocabulary) -> dict[str, dict[str, int]]:
    """Counts the images in which each label is present, absent and unknown."""
    counts = {"present": PRESENT, "absent": ABSENT, "unknown": UNKNOWN}
    totals = {key: (states_NC == state).sum(axis=0).tolist() for key, state in counts.items()}
    return {name: {key: totals[key][c] for key in counts} for c, name in enumerate(vocabulary.names)}


def add_counts(first: dict[str, dict[str, int]], second: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Adds two results of `count_states` of the same labels."""
    return {name: {key: count + second[name][key] for key, count in states.items()} for name, states in first.items()}
