"""The label graph as a picture: labels as boxes, joined to their closest, laid out so that all can be read."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

import numpy as np
import torch

from sigrl_core.evaluation import Evaluation
from sigrl_core.model.asked import Asked
from sigrl_core.model.sigrl import SigRL
from sigrl_core.records import PRESENT
from sigrl_core.report.markup import escape, legend, marked, note, scrollable
from sigrl_core.tagger import Tagger

MAX_NODES = 80
MAX_LETTERS = 20
NEIGHBOURS = 3
SIZE = np.array([1040.0, 660.0])


def label_graph(evaluation: Evaluation, tagger: Tagger) -> str:
    """Picture, legend, and the same as a list."""
    vocabulary, head = evaluation.vocabulary, tagger.recogniser.head
    with torch.no_grad():
        asked = tagger.recogniser.embedded(tagger.ask(vocabulary))
        nodes_CD = head.graph_of(asked).float().cpu().numpy()
    positions = shown(evaluation)
    labels = [vocabulary.labels[position] for position in positions]
    close, source = closeness(head, asked, nodes_CD)
    close = close[np.ix_(positions, positions)]
    order = np.argsort(-close, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(labels) - 1)]
    nearest = [[int(j) for j in row if close[i, j] > 0] for i, row in enumerate(order)]
    edges = sorted({(min(i, j), max(i, j)) for i, row in enumerate(nearest) for j in row})
    names = [n if len(n) <= MAX_LETTERS else n[: MAX_LETTERS - 1] + "…" for n in (label.name for label in labels)]
    boxes = np.array([[_text_width(name) + 16, 22.0] for name in names])
    places = spread(layout(nodes_CD[positions], edges), boxes)

    drawn = []
    largest = max([float(close[i, j]) for i, row in enumerate(nearest) for j in row], default=1.0)
    for i, j in edges:
        (x1, y1), (x2, y2), strength = places[i], places[j], max(0.0, float(max(close[i, j], close[j, i]))) / largest
        style = f'stroke-width="{0.6 + 1.8 * strength:.2f}" opacity="{0.3 + 0.6 * strength:.2f}"'
        drawn.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>')
    for label, name, (x, y), (w, h) in zip(labels, names, places, boxes, strict=True):
        drawn.append(
            f'<g class="{label.split}"><title>{escape(label.name)} ({label.split})</title>'
            f'<rect x="{x - w / 2:.1f}" y="{y - h / 2:.1f}" width="{w:.1f}" height="{h}" rx="7"/>'
            f'<text x="{x:.1f}" y="{y:.1f}">{escape(name)}</text></g>'
        )
    told = f"Label graph of {len(labels)} labels; the list below says the same."
    picture = f'<svg viewBox="0 0 {SIZE[0]:.0f} {SIZE[1]:.0f}" role="img" aria-label="{told}">{"".join(drawn)}</svg>'
    listed = "".join(
        f'<tr><th scope="row">{marked(label.name, label.split)}</th>'
        f"<td>{', '.join(f'{escape(labels[j].name)} {close[i, j]:.2f}' for j in nearest[i]) or 'none'}</td></tr>"
        for i, label in enumerate(labels)
    )
    few = f" Of {len(vocabulary)} labels the {len(labels)} that occur most often, seen and unseen apart, are drawn."
    chip = '<span class="chip {0}">{0}</span>'
    return (
        note(
            f"Each label is joined to {NEIGHBOURS} others at most, those with the largest {source}. "
            f"Thicker is larger.{few if len(labels) < len(vocabulary) else ''}"
        )
        + legend([(chip.format("seen"), "trained on"), (chip.format("unseen"), "only asked for")])
        + scrollable("Label graph picture", picture, "graph")
        + '<details><summary>The same as a list</summary><table><thead><tr><th scope="col">Label</th>'
        + f'<th scope="col">Joined to</th></tr></thead><tbody>{listed}</tbody></table></details>'
    )


def closeness(head: SigRL, asked: Asked, nodes_CD: np.ndarray) -> tuple[np.ndarray, str]:
    """How closely label i is tied to label j, above 0 for those that may be joined, and what that is in words.

    The most telling of what the model has: edges that it learned, edges that it was given, or what its graph puts out.
    """
    with torch.no_grad():
        if head.propagates and asked.trained_C is not None and (asked.trained_C >= 0).any():
            return head.propagation.between(asked.trained_C).cpu().numpy(), "learned edge (what is seen raises it)"
        edges_CC = head.graph.edges(asked.labels_CD, asked.edges_CC) if head.has_graph else None
    if edges_CC is not None:
        kind = {"nearest": "edge to the nearest texts", "cooccurrence": "edge by co-occurrence in training data"}
        told = kind.get(head.graph.config.kind, "edge of the list that was given")
        return edges_CC.cpu().numpy() * (1 - np.eye(len(edges_CC))), told
    source = "what the label graph puts out" if head.has_graph else "text embeddings (this model has no label graph)"
    return cosines(nodes_CD), f"cosine of {source}, their mean taken out"


def shown(evaluation: Evaluation) -> list[int]:
    """Positions of the labels to draw: all, or the most frequent of both splits, half and half if it can be."""
    times_C = (evaluation.states_NC == PRESENT).sum(axis=0)
    unseen, seen = (
        sorted(evaluation.vocabulary.positions(split), key=lambda position: -times_C[position])
        for split in ("unseen", "seen")
    )
    unseen = unseen[: max(MAX_NODES // 2, MAX_NODES - len(seen))]
    return sorted([*unseen, *seen[: MAX_NODES - len(unseen)]])


def cosines(nodes_CD: np.ndarray) -> np.ndarray:
    """Cosines between labels, their mean taken out; -inf with itself, so that none is its own neighbour."""
    centred_CD = nodes_CD - nodes_CD.mean(axis=0)
    unit_CD = centred_CD / np.maximum(np.linalg.norm(centred_CD, axis=1, keepdims=True), 1e-12)
    cosines_CC = unit_CD @ unit_CD.T
    np.fill_diagonal(cosines_CC, -np.inf)
    return cosines_CC


def layout(nodes_CD: np.ndarray, edges: Sequence[tuple[int, int]]) -> np.ndarray:
    """Places in the unit square: principal components, then springs along the edges (Fruchterman and Reingold 1991)."""
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
    for heat in np.linspace(0.1, 0.002, 400):
        apart = places[:, None] - places
        distance = np.maximum(np.linalg.norm(apart, axis=2), 1e-3)
        force = ideal**2 / distance**2 - joined * distance / ideal
        step = (apart * force[..., None]).sum(axis=1) - 1.5 * places
        length = np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-9)
        places = places + step / length * np.minimum(length, heat)
    low, high = places.min(axis=0), places.max(axis=0)
    return (places - low) / np.maximum(high - low, 1e-9) if C > 1 else np.full((1, 2), 0.5)


def spread(places: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Places in the picture, moved step by step until no two boxes touch, or for as long as there is patience.

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
    """Pixels of a text at 12 px, rather too many than too few."""
    return sum(_sign_width(sign) for sign in text)


def _sign_width(sign: str) -> float:
    if unicodedata.east_asian_width(sign) in "WF":
        return 12.5
    return 10 if sign in "mwMW@%" else 4.5 if sign in "iljtf.,'| " else 7.2
