"""Writes the built-in corpus in the form of a user's corpus, JPEGs and a list of labels, and trains the small CLIP."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from sigrl_core.config import QuickstartConfig
from sigrl_core.demo import toybox
from sigrl_core.demo.small_clip import SmallClipConfig, train_small_clip
from sigrl_core.errors import CheckpointError
from sigrl_core.io import storage
from sigrl_core.io.progress import progress_line
from sigrl_core.model.checkpoint import is_checkpoint, load_clip, save_clip

IMAGE_SIZE = 48
"""Pixels on a side, of images and of the input of the small CLIP."""

IMAGES = "pictures"
"""The folder of images inside a corpus, with its name of version 0.1.0, whose quickstarts can be resumed."""

SceneSource = Callable[[toybox.Subset, int], Iterable[toybox.Scene]]
"""Draws this number of scenes of a subset, from the first one on, in order."""


def write_corpus(subset: toybox.Subset, count: int, folder: Path, draw: SceneSource) -> None:
    """Writes images, `vocabulary.json` and, last, `labels.jsonl`; does nothing if `labels.jsonl` exists.

    Images of `labelled` have seen labels only, as in a corpus whose annotators knew no others.
    """
    listing = folder / "labels.jsonl"
    if listing.exists():
        return
    vocabulary = toybox.vocabulary()
    annotated = set(vocabulary.subset("seen").names if subset == "labelled" else vocabulary.names)
    storage.make_folder(str(folder / IMAGES))
    lines = []
    with progress_line(f"draw {subset}", count, unit="images") as advance:
        for number, scene in enumerate(draw(subset, count)):
            name = f"{subset}_{number:05d}.jpg"
            (folder / IMAGES / name).write_bytes(scene.jpeg)
            labels = [label for label in scene.labels if label in annotated]
            lines.append(json.dumps({"uri": name, "labels": labels}) + "\n")
            advance(1)
    storage.write_bytes(str(folder / "vocabulary.json"), vocabulary.to_json().encode())
    storage.write_bytes(str(listing), "".join(lines).encode())


def make_small_clip(folder: Path, config: QuickstartConfig, draw: SceneSource) -> None:
    """Draws captioned images and trains the small CLIP on them; does nothing if the folder has a complete one."""
    if is_checkpoint(folder):
        try:
            load_clip(folder)
            return
        except CheckpointError as error:
            print(f"{error}; training it again")
    pixels = np.empty((config.captioned, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    captions = []
    with progress_line("draw captioned", config.captioned, unit="images") as advance:
        for number, scene in enumerate(draw("captioned", config.captioned)):
            pixels[number] = np.asarray(Image.open(io.BytesIO(scene.jpeg)))
            captions.append(scene.caption)
            advance(1)
    clip_config = SmallClipConfig(epochs=config.clip_epochs, seed=config.seed)
    steps = clip_config.num_steps(config.captioned)
    with progress_line("small CLIP", steps, unit="steps") as advance:
        backbone = train_small_clip(pixels, captions, clip_config, lambda loss: advance(1, f"loss {loss:.3f}"))
    save_clip(folder, backbone)
