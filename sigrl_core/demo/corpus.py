"""Writes the built-in corpus as people have theirs, JPEGs and a list of labels, and makes the small CLIP."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from sigrl_core import storage
from sigrl_core.checkpoint import is_checkpoint, load_clip, save_clip
from sigrl_core.config import QuickstartConfig
from sigrl_core.demo import toybox
from sigrl_core.demo.small_clip import SmallClipConfig, train_small_clip
from sigrl_core.errors import CheckpointError
from sigrl_core.progress import progress_line

PICTURE_SIZE = 48
"""Pixels on a side, of pictures and of the small CLIP."""


Draw = Callable[[toybox.Part, int], Iterable[toybox.Picture]]
"""Draws the first so many pictures of a part, in order; where and how many at a time is the caller's affair."""


def write_corpus(part: toybox.Part, count: int, folder: Path, draw: Draw) -> None:
    """Writes `pictures/*.jpg`, `vocabulary.json` and, last, `labels.jsonl`; does nothing where that exists.

    Of `labelled` pictures only seen labels are written down, as someone would who knows of no others.
    """
    listing = folder / "labels.jsonl"
    if listing.exists():
        return
    vocabulary = toybox.vocabulary()
    known = set(vocabulary.subset("seen").names if part == "labelled" else vocabulary.names)
    storage.make_folder(str(folder / "pictures"))
    lines = []
    with progress_line(f"draw {part}", count, unit="pictures") as advance:
        for number, picture in enumerate(draw(part, count)):
            name = f"{part}_{number:05d}.jpg"
            (folder / "pictures" / name).write_bytes(picture.jpeg)
            labels = [label for label in picture.labels if label in known]
            lines.append(json.dumps({"uri": name, "labels": labels}) + "\n")
            advance(1)
    storage.write_bytes(str(folder / "vocabulary.json"), vocabulary.to_json().encode())
    storage.write_bytes(str(listing), "".join(lines).encode())


def make_small_clip(folder: Path, config: QuickstartConfig, draw: Draw) -> None:
    """Draws captioned pictures and trains the small CLIP on them; does nothing where a finished one lies."""
    if is_checkpoint(folder):
        try:
            load_clip(folder)
            return
        except CheckpointError as error:
            print(f"{error}; making it again")
    pixels = np.empty((config.captioned, PICTURE_SIZE, PICTURE_SIZE, 3), np.uint8)
    captions = []
    with progress_line("draw captioned", config.captioned, unit="pictures") as advance:
        for number, picture in enumerate(draw("captioned", config.captioned)):
            pixels[number] = np.asarray(Image.open(io.BytesIO(picture.jpeg)))
            captions.append(picture.caption)
            advance(1)
    clip_config = SmallClipConfig(epochs=config.clip_epochs, seed=config.seed)
    steps = clip_config.steps(config.captioned)
    with progress_line("small CLIP", steps, unit="steps") as advance:
        backbone = train_small_clip(pixels, captions, clip_config, lambda loss: advance(1, f"loss {loss:.3f}"))
    save_clip(folder, backbone)
