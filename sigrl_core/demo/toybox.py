"""The built-in corpus: small drawn scenes, generated from a seed.

A scene has one to four objects on a background. Each object has a colour and a shape (label `red star`), and half of
them have a texture too (`striped star`); the background is also a label (`sand`). A scene has one of six themes, each
with its own frequent objects, so labels are correlated as they are in photographs. 16 of the 66 labels are unseen: each
of their words occurs in seen labels, but never the pair.

The corpus has three disjoint subsets. Each scene is a function of (seed, subset, index) only::

    captioned   for the small CLIP: a caption names some of the objects, unseen ones too, as web captions do
    labelled    for SigRL: objects with seen labels only, and all their labels
    test        2 to 4 objects, and all labels

Labelled scenes have no unseen objects, which is the protocol of Bansal et al. 2018 (arXiv 1804.04340): otherwise
training would use unseen objects as negatives of every seen label.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from sigrl_core.labels.vocabulary import Label, Vocabulary

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
NUM_THEMES = 6

Structure = Literal["loose", "strong"]
STRUCTURES: dict[Structure, tuple[float, float]] = {"loose": (0.7, 0.6), "strong": (0.95, 0.95)}
"""The probabilities that a scene has the background of its theme, and that an object is one of its theme's."""

Subset = Literal["captioned", "labelled", "test"]
SUBSETS: tuple[Subset, ...] = ("captioned", "labelled", "test")


def vocabulary() -> Vocabulary:
    """Returns the 66 labels, 50 seen and 16 unseen, in a fixed order."""
    pairs = [f"{adjective} {shape}" for adjective in (*COLOURS, *TEXTURES) for shape in SHAPES]
    return Vocabulary(
        tuple(Label(name=name, group="unseen" if name in UNSEEN else "seen") for name in (*pairs, *BACKGROUNDS))
    )


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene; its texture is None if it has a plain fill."""

    colour: str
    shape: str
    texture: str | None

    @property
    def labels(self) -> list[str]:
        return [f"{self.colour} {self.shape}"] + ([f"{self.texture} {self.shape}"] if self.texture else [])


@dataclass(frozen=True)
class Scene:
    """One image of the corpus.

    Attributes:
        jpeg: the encoded image, `size` x `size` pixels.
        labels: all labels that are true of the image, in no particular order, without repeats.
        caption: an incomplete description, as in captions of the web.
    """

    jpeg: bytes
    labels: list[str]
    caption: str


def scenes(subset: Subset, indices: Iterable[int], size: int, seed: int, structure: Structure = "loose") -> list[Scene]:
    """Draws the scenes of a subset that have these indices."""
    return [draw_scene(subset, index, size=size, seed=seed, structure=structure) for index in indices]


def draw_scene(subset: Subset, index: int, *, size: int, seed: int, structure: Structure = "loose") -> Scene:
    """Draws one scene. Captioned scenes always have the loose structure, so that both structures share a small CLIP."""
    rng = np.random.default_rng([seed, SUBSETS.index(subset), index])
    background, objects = _compose(subset, rng, seed, "loose" if subset == "captioned" else structure)
    jpeg = _draw(background, objects, size, rng)
    return Scene(
        jpeg=jpeg,
        labels=list(dict.fromkeys([*(label for each in objects for label in each.labels), background])),
        caption=_caption(background, objects, rng),
    )


@cache
def _theme_objects(seed: int) -> list[list[SceneObject]]:
    """Returns six frequent objects for each theme."""
    rng = np.random.default_rng([seed, len(SUBSETS)])
    return [[_random_object(rng) for _ in range(6)] for _ in range(NUM_THEMES)]


def _random_object(rng: np.random.Generator) -> SceneObject:
    texture = TEXTURES[rng.integers(len(TEXTURES))] if rng.random() < 0.5 else None
    return SceneObject(list(COLOURS)[rng.integers(len(COLOURS))], SHAPES[rng.integers(len(SHAPES))], texture)


def _compose(
    subset: Subset, rng: np.random.Generator, seed: int, structure: Structure
) -> tuple[str, list[SceneObject]]:
    """Chooses a background and objects."""
    p_background, p_object = STRUCTURES[structure]
    theme = int(rng.integers(NUM_THEMES))
    background = BACKGROUNDS[theme if rng.random() < p_background else rng.integers(len(BACKGROUNDS))]
    single = subset == "captioned" and rng.random() < 0.85  # from single objects a CLIP learns what each word means
    count = 1 if single else int(rng.integers(2, 5))
    frequent = _theme_objects(seed)[theme]
    p_frequent = 0.0 if single else p_object
    objects: list[SceneObject] = []
    while len(objects) < count:
        each = frequent[rng.integers(len(frequent))] if rng.random() < p_frequent else _random_object(rng)
        if subset != "labelled" or not set(each.labels) & set(UNSEEN):  # the protocol of the module's docstring
            objects.append(each)
    return background, objects


def _caption(background: str, objects: Sequence[SceneObject], rng: np.random.Generator) -> str:
    """Names one or two objects, and sometimes the background, or only the background."""
    named = [objects[i] for i in rng.permutation(len(objects))[: int(rng.integers(1, 3))]]
    phrases = [each.labels[rng.integers(len(each.labels))] for each in named]
    if rng.random() < 0.15:
        phrases = [named[0].shape]
    form = rng.random()
    if form < 0.1:
        return background
    return " and ".join(f"a {phrase}" for phrase in phrases) + (f" on {background}" if form < 0.4 else "")


# ---- drawing: on a canvas of twice the size, which is reduced at the end, so that edges are smooth ----


def _draw(background: str, objects: Sequence[SceneObject], size: int, rng: np.random.Generator) -> bytes:
    canvas_size = 2 * size
    canvas = _background(background, canvas_size, rng)
    mean_radius = canvas_size * (0.26 if len(objects) == 1 else 0.2)
    centres: list[np.ndarray] = []
    for each in objects:
        radius = mean_radius * rng.uniform(0.75, 1.2)
        options = rng.uniform(radius * 0.8, canvas_size - radius * 0.8, (6, 2))
        apart = [min((np.hypot(*(option - centre)) for centre in centres), default=0.0) for option in options]
        centre = options[int(np.argmax(apart))]  # the emptiest of six places: objects overlap, but rarely disappear
        centres.append(centre)
        _draw_object(canvas, each, centre, radius, rng)
    reduced = canvas.resize((size, size), Image.Resampling.BOX)
    noisy = np.asarray(reduced, np.float32) + rng.normal(0, rng.uniform(2, 9), (size, size, 3)).astype(np.float32)
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=int(rng.integers(75, 96)))
    return buffer.getvalue()


def _background(name: str, size: int, rng: np.random.Generator) -> Image.Image:
    """Draws a background: a base colour with a pattern of its own."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    phase = rng.uniform(0, 6.28)
    base, pattern = {
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
    pixels = np.asarray(base, np.float32) + rng.normal(0, 8, 3).astype(np.float32) + pattern[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _draw_object(
    canvas: Image.Image, scene_object: SceneObject, centre: np.ndarray, radius: float, rng: np.random.Generator
) -> None:
    box = int(2 * radius) + 2
    angle = rng.uniform(-0.6, 0.6)
    mask = _shape_mask(scene_object.shape, box, radius, angle)
    fill = _fill(scene_object, box, rng)
    corner = (int(centre[0] - box / 2), int(centre[1] - box / 2))
    canvas.paste(fill, corner, mask)
    if scene_object.texture == "framed":  # a dark rim, and the colour inside it
        canvas.paste((20, 20, 20), corner, mask)
        canvas.paste(fill, corner, _shape_mask(scene_object.shape, box, radius * 0.68, angle))


def _shape_mask(shape: str, box: int, radius: float, angle: float) -> Image.Image:
    """Draws a shape in white on black, in the middle of a square of `box` pixels."""
    mask, middle = Image.new("L", (box, box), 0), box / 2
    draw = ImageDraw.Draw(mask)
    if shape in ("circle", "ring"):
        draw.ellipse((middle - radius, middle - radius, middle + radius, middle + radius), fill=255)
        if shape == "ring":
            hole = radius * 0.5
            draw.ellipse((middle - hole, middle - hole, middle + hole, middle + hole), fill=0)
        return mask
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
        fill=255,
    )
    return mask


def _fill(scene_object: SceneObject, box: int, rng: np.random.Generator) -> Image.Image:
    """Draws a square of the object's colour and texture."""
    colour = np.clip(np.asarray(COLOURS[scene_object.colour]) + rng.normal(0, 12, 3), 0, 255).astype(np.uint8)
    if scene_object.texture in (None, "framed"):
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
    }[scene_object.texture]
    return Image.fromarray(np.where(pattern[..., None], light, colour))
