"""The label graph as data to draw: boxes of labels, joined to their closest labels, placed so that none overlap."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sigrl_core.data.label_states import PRESENT
from sigrl_core.evaluation.evaluator import Evaluation
from sigrl_core.inference.tagger import Tagger
from sigrl_core.model.label_set import LabelSet
from sigrl_core.model.sigrl import SigRL
from sigrl_core.report.page import shortened

MAX_NODES = 80
MAX_LETTERS = 20
MAX_NEIGHBOURS = 3
SIZE = np.array([1040.0, 660.0])
"""Width and height of the drawing."""


def label_graph(evaluation: Evaluation, tagger: Tagger) -> dict[str, Any]:
    """Returns labels with their boxes and neighbours, and edges with their ends and strengths, 0 to 1."""
    vocabulary, head = evaluation.vocabulary, tagger.model.head
    with torch.no_grad():
        label_set = tagger.model.project_labels(tagger.encode_labels(vocabulary))
        nodes_CD = head.compute_graph(label_set).float().cpu().numpy()
    positions = drawn_labels(evaluation)
    close_CC, source = closeness(head, label_set, nodes_CD)
    close_KK = close_CC[np.ix_(positions, positions)]
    order = np.argsort(-close_KK, axis=1, kind="stable")[:, : min(MAX_NEIGHBOURS, len(positions) - 1)]
    neighbours = [[int(j) for j in row if close_KK[i, j] > 0] for i, row in enumerate(order)]
    pairs = sorted({(min(i, j), max(i, j)) for i, row in enumerate(neighbours) for j in row})
    largest = max([float(close_KK[i, j]) for i, row in enumerate(neighbours) for j in row], default=1.0)
    labels = [vocabulary.labels[position] for position in positions]
    names = [shortened(label.name, MAX_LETTERS) for label in labels]
    boxes = np.array([[_text_width(name) + 16, 22.0] for name in names])
    places = spread(layout(nodes_CD[positions], pairs), boxes).tolist()
    listed = [[(labels[j].name, float(close_KK[i, j])) for j in row] for i, row in enumerate(neighbours)]
    return {
        "size": [int(side) for side in SIZE],
        "max_neighbours": MAX_NEIGHBOURS,
        "source": source,
        "nodes": list(zip(labels, names, places, boxes.tolist(), listed, strict=True)),
        "edges": [
            (*places[i], *places[j], max(0.0, float(max(close_KK[i, j], close_KK[j, i]))) / largest) for i, j in pairs
        ],
    }


def closeness(head: SigRL, label_set: LabelSet, nodes_CD: np.ndarray) -> tuple[np.ndarray, str]:
    """Returns how closely label i is tied to label j, and the meaning of these values in words; a value of at most 0
    joins no labels.

    The values are the most specific ones that the model has: edges that it learned, edges that it was given, or
    cosines of the output of its graph.
    """
    with torch.no_grad():
        if head.propagates and label_set.trained_C is not None and (label_set.trained_C >= 0).any():
            edges_CC = head.propagation.edges_between(label_set.trained_C)
            return edges_CC.cpu().numpy(), "learned edge (its own score raises the neighbour's score)"
        edges_CC = head.graph.compute_edges(label_set.labels_CD, label_set.edges_CC) if head.has_graph else None
    if edges_CC is not None:
        names = {"nearest": "edge to the nearest texts", "cooccurrence": "edge by co-occurrence in training data"}
        name = names.get(head.graph.config.kind, "edge of the list that was given")
        return edges_CC.cpu().numpy() * (1 - np.eye(len(edges_CC))), name
    source = "the output of the label graph" if head.has_graph else "text embeddings (this model has no label graph)"
    return cosines(nodes_CD), f"cosine of {source}, less their mean"


def drawn_labels(evaluation: Evaluation) -> list[int]:
    """Returns the positions of all labels, or of the most frequent of both groups, half and half if possible."""
    count_C = (evaluation.states_NC == PRESENT).sum(axis=0)
    unseen, seen = (
        sorted(evaluation.vocabulary.positions(group), key=lambda position: -count_C[position])
        for group in ("unseen", "seen")
    )
    unseen = unseen[: max(MAX_NODES // 2, MAX_NODES - len(seen))]
    return sorted([*unseen, *seen[: MAX_NODES - len(unseen)]])


def cosines(nodes_CD: np.ndarray) -> np.ndarray:
    """Returns cosines between labels less their mean; -inf on the diagonal, so that no label is its own neighbour."""
    centred_CD = nodes_CD - nodes_CD.mean(axis=0)
    unit_CD = centred_CD / np.maximum(np.linalg.norm(centred_CD, axis=1, keepdims=True), 1e-12)
    cosines_CC = unit_CD @ unit_CD.T
    np.fill_diagonal(cosines_CC, -np.inf)
    return cosines_CC


def layout(nodes_CD: np.ndarray, edges: Sequence[tuple[int, int]]) -> np.ndarray:
    """Returns places in the unit square: principal components, moved by springs along the edges and by gravity.

    Forces and cooling are those of Fruchterman and Reingold (1991). Gravity keeps separate parts of the graph together;
    the layouts of networkx without it, or with ForceAtlas2, leave clusters on the rim or on top of each other.
    """
    C = len(nodes_CD)
    angle = np.arange(C) * 2.399963  # the golden angle: no two labels start in one place
    places = 0.05 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    u, s, _ = np.linalg.svd(nodes_CD - nodes_CD.mean(axis=0), full_matrices=False)
    components = (u * s)[:, :2]
    places[:, : components.shape[1]] += components / max(float(np.abs(components).max()), 1e-12)
    joined = np.zeros((C, C))
    for i, j in edges:
        joined[i, j] = joined[j, i] = 1
    ideal = 1.6 / math.sqrt(C)
    for max_step in np.linspace(0.1, 0.002, 400):
        apart = places[:, None] - places
        distance = np.maximum(np.linalg.norm(apart, axis=2), 1e-3)
        force = ideal**2 / distance**2 - joined * distance / ideal
        step = (apart * force[..., None]).sum(axis=1) - 1.5 * places
        length = np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-9)
        places = places + step / length * np.minimum(length, max_step)
    low, high = places.min(axis=0), places.max(axis=0)
    return (places - low) / np.maximum(high - low, 1e-9) if C > 1 else np.full((1, 2), 0.5)


def spread(places: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Returns places in the drawing, moved until no two boxes overlap, for at most 500 steps.

    Args:
        places: in the unit square.
        boxes: width and height of each.
    """
    low, high = boxes / 2 + 4, SIZE - boxes / 2 - 4
    places = low + places * (high - low)
    room = (boxes[:, None] + boxes) / 2 + (8, 7)
    number = np.arange(len(places))
    earlier = np.sign(number[:, None] - number)[..., None]
    for _ in range(500):
        apart = places[:, None] - places
        overlap = room - np.abs(apart)
        touching = (overlap > 0).all(axis=2) & ~np.eye(len(places), dtype=bool)
        if not touching.any():
            break
        shorter = np.arange(2) == overlap.argmin(axis=2)[..., None]
        side = np.where(apart != 0, np.sign(apart), earlier)
        push = np.where(touching[..., None] & shorter, side * overlap, 0).sum(axis=1)
        places = np.clip(places + 0.3 * push, low, high)
    return places


def _text_width(text: str) -> float:
    """Returns an upper estimate of the width of a text of 12 px, in pixels."""
    return sum(_letter_width(letter) for letter in text)


def _letter_width(letter: str) -> float:
    if unicodedata.east_asian_width(letter) in "WF":
        return 12.5
    return 10 if letter in "mwMW@%" else 4.5 if letter in "iljtf.,'| " else 7.2
