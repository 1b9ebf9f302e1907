"""Toybox: a corpus of small drawn scenes, made from a seed.

A picture holds one to four objects on a background. Every object has a colour and a shape (`red star`), some have a
texture as well (`striped star`); the background is a label too (`sand`). Objects come from one of six kinds of scene,
each with its own favourites, so labels are correlated as they are in photographs. Of 66 labels 16 are unseen: each of
their words is heard in seen labels, never the pair.

Three disjoint parts, each picture a function of (seed, part, index) alone::

    captioned   for the small CLIP: a caption names some of what is visible, unseen phrases too, as web captions would
    labelled    for SigRL: scenes of seen things alone, all their labels
    test        2 to 4 objects, all labels

Labelled scenes without unseen things are the protocol of Bansal et al. 2018 (arXiv 1804.04340): an unseen object in
them would be taught as an example of nothing.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from sigrl_core.vocabulary import Label, Vocabulary

COLOURS = {
    "red": (214, 40, 40),
    "green": (44, 150, 60),
    "blue": (36, 84, 200),
    "yellow": (240, 208, 40),
    "purple": (132, 50, 160),
    "orange": (240, 128, 24),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
TEXTURES = ("striped", "dotted", "checkered", "framed")
BACKGROUNDS = ("grass", "sand", "water", "night", "brick", "snow")
UNSEEN = (
    *("red star", "red ring", "green circle", "green cross", "blue square", "blue triangle"),
    *("yellow triangle", "yellow ring", "purple circle", "purple star", "orange square", "orange cross"),
    *("striped circle", "dotted star", "checkered triangle", "framed cross"),
)
NUM_SCENES = 6

Structure = Literal["loose", "strong"]
STRUCTURES: dict[Structure, tuple[float, float]] = {"loose": (0.7, 0.6), "strong": (0.95, 0.95)}
"""How often a scene has its own background, and one of its favourite things rather than any."""

Part = Literal["captioned", "labelled", "test"]
PARTS: tuple[Part, ...] = ("captioned", "labelled", "test")


def vocabulary() -> Vocabulary:
    """The 66 labels, 50 seen and 16 unseen, in a fixed order."""
    pairs = [f"{adjective} {shape}" for adjective in (*COLOURS, *TEXTURES) for shape in SHAPES]
    return Vocabulary(
        tuple(Label(name=name, split="unseen" if name in UNSEEN else "seen") for name in (*pairs, *BACKGROUNDS))
    )


@dataclass(frozen=True)
class Thing:
    """One object of a scene; a texture of None is a plain fill."""

    colour: str
    shape: str
    texture: str | None

    @property
    def labels(self) -> list[str]:
        return [f"{self.colour} {self.shape}"] + ([f"{self.texture} {self.shape}"] if self.texture else [])


@dataclass(frozen=True)
class Picture:
    """One picture of the corpus.

    Attributes:
        jpeg: the encoded picture, `size` x `size` pixels.
        labels: every label that is true of it, in no particular order, without repeats.
        caption: what a careless person would write under it.
    """

    jpeg: bytes
    labels: list[str]
    caption: str


def pictures(part: Part, numbers: Iterable[int], size: int, seed: int, structure: Structure = "loose") -> list[Picture]:
    """Pictures of a part by their numbers."""
    return [picture(part, number, size=size, seed=seed, structure=structure) for number in numbers]


def picture(part: Part, index: int, *, size: int, seed: int, structure: Structure = "loose") -> Picture:
    """One picture; captioned ones are of loose structure always, so that one small CLIP serves both."""
    rng = np.random.default_rng([seed, PARTS.index(part), index])
    background, things = _compose(part, rng, seed, "loose" if part == "captioned" else structure)
    jpeg = _draw(background, things, size, rng)
    return Picture(
        jpeg=jpeg,
        labels=list(dict.fromkeys([*(label for thing in things for label in thing.labels), background])),
        caption=_caption(background, things, rng),
    )


@cache
def _favourites(seed: int) -> list[list[Thing]]:
    """Six things that belong to each kind of scene."""
    rng = np.random.default_rng([seed, len(PARTS)])
    return [[_any_thing(rng) for _ in range(6)] for _ in range(NUM_SCENES)]


def _any_thing(rng: np.random.Generator) -> Thing:
    texture = TEXTURES[rng.integers(len(TEXTURES))] if rng.random() < 0.5 else None
    return Thing(list(COLOURS)[rng.integers(len(COLOURS))], SHAPES[rng.integers(len(SHAPES))], texture)


def _compose(part: Part, rng: np.random.Generator, seed: int, structure: Structure) -> tuple[str, list[Thing]]:
    own_background, own_things = STRUCTURES[structure]
    scene = int(rng.integers(NUM_SCENES))
    background = BACKGROUNDS[scene if rng.random() < own_background else rng.integers(len(BACKGROUNDS))]
    alone = part == "captioned" and rng.random() < 0.85  # single objects teach a CLIP what each word means
    count = 1 if alone else int(rng.integers(2, 5))
    favourites = _favourites(seed)[scene]
    expected = 0.0 if alone else own_things
    things: list[Thing] = []
    while len(things) < count:
        thing = favourites[rng.integers(len(favourites))] if rng.random() < expected else _any_thing(rng)
        if part != "labelled" or not set(thing.labels) & set(UNSEEN):  # see above
            things.append(thing)
    return background, things


def _caption(background: str, things: Sequence[Thing], rng: np.random.Generator) -> str:
    named = [things[i] for i in rng.permutation(len(things))[: int(rng.integers(1, 3))]]
    phrases = [thing.labels[rng.integers(len(thing.labels))] for thing in named]
    if rng.random() < 0.15:  # a bare noun, now and then
        phrases = [named[0].shape]
    place = rng.random()
    if place < 0.1:
        return background
    return " and ".join(f"a {phrase}" for phrase in phrases) + (f" on {background}" if place < 0.4 else "")


# ---- drawing: on a canvas of twice the size, reduced at the end, so that edges are smooth ----


def _draw(background: str, things: Sequence[Thing], size: int, rng: np.random.Generator) -> bytes:
    canvas_size = 2 * size
    canvas = _background(background, canvas_size, rng)
    reach = canvas_size * (0.26 if len(things) == 1 else 0.2)
    centres: list[np.ndarray] = []
    for thing in things:
        radius = reach * rng.uniform(0.75, 1.2)
        options = rng.uniform(radius * 0.8, canvas_size - radius * 0.8, (6, 2))
        apart = [min((np.hypot(*(option - other)) for other in centres), default=0.0) for option in options]
        centre = options[int(np.argmax(apart))]  # of six places the emptiest: objects overlap, but seldom vanish
        centres.append(centre)
        _place(canvas, thing, centre, radius, rng)
    reduced = canvas.resize((size, size), Image.Resampling.BOX)
    noisy = np.asarray(reduced, np.float32) + rng.normal(0, rng.uniform(2, 9), (size, size, 3)).astype(np.float32)
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=int(rng.integers(75, 96)))
    return buffer.getvalue()


def _background(name: str, size: int, rng: np.random.Generator) -> Image.Image:
    y, x = np.mgrid[:size, :size].astype(np.float32)
    phase = rng.uniform(0, 6.28)
    base, ripple = {
        "grass": ((108, 168, 84), 14 * np.sin(x * 1.7 + phase) * np.sin(y * 0.5 + phase)),
        "sand": ((222, 200, 150), 5 * np.sin(x * 0.9 + y * 0.7 + phase)),
        "water": ((96, 170, 214), 16 * np.sin(y * 0.35 + 1.5 * np.sin(x * 0.12 + phase))),
        "night": ((28, 28, 58), 90 * (np.sin(x * 0.37 + phase) * np.sin(y * 0.41 + phase) > 0.97)),
        "brick": (
            (172, 96, 76),
            40 * (((y // 10) % 2 * 10 + x + phase * 3) % 20 < 2) + 40 * ((y + phase * 2) % 10 < 2),
        ),
        "snow": ((238, 242, 246), 4 * np.sin(x * 0.2 + phase)),
    }[name]
    pixels = np.asarray(base, np.float32) + rng.normal(0, 8, 3).astype(np.float32) + ripple[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _place(canvas: Image.Image, thing: Thing, centre: np.ndarray, radius: float, rng: np.random.Generator) -> None:
    box = int(2 * radius) + 2
    angle = rng.uniform(-0.6, 0.6)
    mask = Image.new("L", (box, box), 0)
    _outline(ImageDraw.Draw(mask), thing.shape, box / 2, radius, angle, 255)
    fill = _fill(thing, box, rng)
    corner = (int(centre[0] - box / 2), int(centre[1] - box / 2))
    canvas.paste(fill, corner, mask)
    if thing.texture == "framed":  # a dark rim with the colour inside
        inner = Image.new("L", (box, box), 0)
        _outline(ImageDraw.Draw(inner), thing.shape, box / 2, radius * 0.68, angle, 255)
        canvas.paste((20, 20, 20), corner, mask)
        canvas.paste(fill, corner, inner)


def _outline(draw: ImageDraw.ImageDraw, shape: str, middle: float, radius: float, angle: float, ink: int) -> None:
    if shape in ("circle", "ring"):
        draw.ellipse((middle - radius, middle - radius, middle + radius, middle + radius), fill=ink)
        if shape == "ring":
            hole = radius * 0.5
            draw.ellipse((middle - hole, middle - hole, middle + hole, middle + hole), fill=0)
        return
    corners = {
        "square": [(1.0, np.pi / 4 + k * np.pi / 2) for k in range(4)],
        "triangle": [(1.0, -np.pi / 2 + k * 2 * np.pi / 3) for k in range(3)],
        "star": [(1.0 if k % 2 == 0 else 0.42, -np.pi / 2 + k * np.pi / 5) for k in range(10)],
        "cross": [
            (distance, a + k * np.pi / 2)
            for k in range(4)
            for distance, a in ((1.0, -0.32), (1.0, 0.32), (0.44, np.pi / 4))
        ],
    }[shape]
    draw.polygon(
        [(middle + radius * r * np.cos(a + angle), middle + radius * r * np.sin(a + angle)) for r, a in corners],
        fill=ink,
    )


def _fill(thing: Thing, box: int, rng: np.random.Generator) -> Image.Image:
    colour = np.clip(np.asarray(COLOURS[thing.colour]) + rng.normal(0, 12, 3), 0, 255).astype(np.uint8)
    if thing.texture in (None, "framed"):
        return Image.new("RGB", (box, box), tuple(int(c) for c in colour))
    light = np.asarray((245, 245, 240), np.uint8)
    y, x = np.mgrid[:box, :box]
    step = max(5, round(box / 6))
    turn = rng.uniform(-0.5, 0.5)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    pattern = {
        "striped": (v // step) % 2 == 0,
        "dotted": (u % (1.6 * step) - 0.8 * step) ** 2 + (v % (1.6 * step) - 0.8 * step) ** 2 < (0.48 * step) ** 2,
        "checkered": ((u // step) + (v // step)) % 2 == 0,
    }[thing.texture]
    return Image.fromarray(np.where(pattern[..., None], light, colour))
