"""Many distinct photographs out of the few real ones: seeded crops, saved at seeded qualities."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image


def write_photographs(sources: Path, folder: Path, count: int, seed: int = 0) -> None:
    """Writes `count` JPEGs of about 640 x 480 below `folder`, 1,000 to a sub-folder; those there are kept.

    Args:
        sources: folder of the real photographs, any depth.
    """
    paths = sorted(sources.rglob("*.jpg"))
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(_write, paths, folder, seed), range(count), chunksize=50))


def _write(paths: Sequence[Path], folder: Path, seed: int, number: int) -> None:
    place = folder / f"{number // 1000:03d}" / f"{number:06d}.jpg"
    if place.exists():
        return
    rng = np.random.default_rng([seed, number])
    with Image.open(paths[number % len(paths)]) as source:
        image = source.convert("RGB")
    left, top, right, bottom = (int(margin) for margin in rng.integers(0, 24, 4))
    image = image.crop((left, top, image.width - right, image.height - bottom))
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_suffix(".tmp")
    image.save(temporary, "JPEG", quality=int(rng.integers(75, 96)))
    temporary.rename(place)
