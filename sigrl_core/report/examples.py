"""Pictures of an evaluation: with what is said of them and what is true, and with where their labels fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from sigrl_core import images
from sigrl_core.batches import Rows
from sigrl_core.errors import ShardError
from sigrl_core.evaluation import Evaluation
from sigrl_core.heat_map import draw
from sigrl_core.records import ABSENT, PRESENT, UNKNOWN
from sigrl_core.report.markup import counted, escape, legend, marked, note
from sigrl_core.report.pictures import data_uri, thumbnail
from sigrl_core.tagger import Tagger, top_tags

NUM_PICTURES = 24
MIN_TAGS = 3
NUM_HEAT_MAPS = 4
HEAT_MAP = 160
"""Pixels on a side of a heat map."""

JUDGEMENTS = {PRESENT: ("right", "✓"), ABSENT: ("wrong", "✗"), UNKNOWN: ("unknown", "?")}


GONE = "The features that were evaluated have no pictures beside them any more."


def pictures(evaluation: Evaluation, rows: Rows | None) -> str:
    """A few of the rows evaluated, each with its best labels."""
    if rows is None:
        return note(GONE)
    total = len(evaluation.uris)
    numbers = sorted({round(number) for number in np.linspace(0, total - 1, min(NUM_PICTURES, total))})
    jpegs = _read(evaluation, rows, numbers)
    cards = [_card(evaluation, number, jpeg) for number, jpeg in zip(numbers, jpegs, strict=True)]
    words = {"right": "right", "wrong": "wrong", "unknown": "not annotated"}
    signs = [(f'<span class="{kind}">{sign}</span>', words[kind]) for kind, sign in JUDGEMENTS.values()]
    return (
        note(
            f"{counted(len(cards), 'picture')} spread evenly over the set, each with its best labels by SigRL, asked "
            f"with all labels: as many as are true of it, {MIN_TAGS} at least."
        )
        + legend([*signs, ('<span class="diamond">◆</span>', "unseen label")])
        + f'<ul class="pictures">{"".join(cards)}</ul>'
    )


def heat_maps(evaluation: Evaluation, rows: Rows | None, tagger: Tagger) -> str:
    """A few pictures, each followed by where its best labels fit."""
    if rows is None:
        return note(GONE)
    total = len(evaluation.uris)
    numbers = sorted({round(number) for number in np.linspace(0, total - 1, min(NUM_HEAT_MAPS, total))})
    jpegs = list(_read(evaluation, rows, numbers))
    told = tagger.tag(jpegs, evaluation.vocabulary, top_k=MIN_TAGS, heat_maps=True)
    items = ""
    for number, jpeg, tags in zip(numbers, jpegs, told, strict=True):
        seen = images.centre_crop_array(jpeg, HEAT_MAP)
        uri = escape(evaluation.uris[number])
        items += (
            f'<li><img src="{data_uri(Image.fromarray(seen))}" alt="What the model sees of {uri}" title="{uri}"></li>'
        )
        for name, map_HW in zip(tags.labels, tags.heat_maps, strict=True):
            split = evaluation.vocabulary.labels[evaluation.vocabulary.index[name]].split
            source, label = data_uri(draw(map_HW, seen)), escape(name)
            items += (
                f'<li><img src="{source}" alt="Where {label} fits in picture {number + 1}">'
                f'<p class="name">{marked(name, split)}</p></li>'
            )
    return (
        note(
            f"{counted(len(numbers), 'picture')}, the square that the model sees, and where its {MIN_TAGS} best labels "
            "fit: bright is where a label fits best in that picture, whether or not it is there."
        )
        + f'<ul class="pictures heat">{items}</ul>'
    )


def _read(evaluation: Evaluation, rows: Rows, numbers: Sequence[int]) -> Iterator[bytes]:
    """The pictures of some rows."""
    if len(rows) != len(evaluation.uris):
        raise ShardError(
            f"{rows.folder.uri}: has {len(rows)} rows, but {len(evaluation.uris)} were evaluated; run evaluate.py again"
        )
    for number in numbers:
        uri, jpeg, _ = rows.read(number)
        if uri != (expected := evaluation.uris[number]):
            raise ShardError(
                f"{rows.folder.uri}: row {number} is {uri}, but {expected} was evaluated; run evaluate.py again"
            )
        yield jpeg


def _card(evaluation: Evaluation, number: int, jpeg: bytes) -> str:
    """One picture with what is said of it and what is true of it."""
    vocabulary, states_C = evaluation.vocabulary, evaluation.states_NC[number]
    true = [label for label, state in zip(vocabulary.labels, states_C, strict=True) if state == PRESENT]
    said = top_tags(evaluation.scores["sigrl"]["gzsl"][number], vocabulary, max(MIN_TAGS, len(true)))
    tags = ""
    for position in (vocabulary.index[name] for name in said.labels):
        label, (kind, sign) = vocabulary.labels[position], JUDGEMENTS[int(states_C[position])]
        tags += (
            f'<li class="{kind}"><span aria-hidden="true">{sign}</span><span class="hidden">{kind}:</span>'
            f'<span class="name">{marked(label.name, label.split)}</span></li>'
        )
    truth = ", ".join(f'<span class="name">{marked(label.name, label.split)}</span>' for label in true) or "none"
    uri = escape(evaluation.uris[number])
    picture = thumbnail(jpeg, f'alt="Picture {number + 1}, {uri}" title="{uri}"')
    return f'<li>{picture}<ul class="tags">{tags}</ul><p class="soft">True: {truth}</p></li>'
