"""Hostile files: each becomes an upright picture as Pillow alone makes it, or an ImageError with a reason."""

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sigrl_core import images
from sigrl_core.errors import ImageError
from tests.hostile import Hostile, hostile

pytestmark = pytest.mark.unit

SHORT_SIDE, QUALITY = 256, 90
MOST_FROM_PILLOW = 0.5
"""Mean difference in grey levels of 255 from the JPEG that Pillow alone makes."""
MOST_FROM_PIXELS = 8.0
"""Mean difference in grey levels from the pixels before they are encoded."""


def made_by_pillow(picture: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of the shrunken picture, before and after they went through a JPEG."""
    short = min(picture.size)
    if short > SHORT_SIDE:
        width, height = (max(SHORT_SIDE, round(side * SHORT_SIDE / short)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return np.asarray(picture, int), np.asarray(Image.open(stream).convert("RGB"), int)


def outcome(data: bytes) -> images.Jpeg | str:
    """A JPEG, or why there is none."""
    try:
        return images.to_jpeg(data, SHORT_SIDE, QUALITY)
    except ImageError as error:
        return error.reason


def check(files: Sequence[Hostile]) -> str:
    """Returns one line of figures."""
    outcomes, from_pillow, from_pixels = Counter(), [0.0], [0.0]
    for number, (kind, data, expected, picture) in enumerate(files):
        name = f"{number}: {kind}"
        jpeg = outcome(data)
        found = jpeg if isinstance(jpeg, str) else "good"
        outcomes[found] += 1
        assert found in ("good", *images.REASONS), name
        assert expected in (found, "either"), f"{name}: {found}, expected {expected}"
        assert outcome(data) == jpeg, name
        if isinstance(jpeg, str):
            continue
        image = Image.open(io.BytesIO(jpeg.data))
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (jpeg.width, jpeg.height)), name
        if picture is None or jpeg.data == data:
            continue
        pixels, after = made_by_pillow(picture)
        stored = np.asarray(image, int)
        assert stored.shape == pixels.shape, name
        from_pillow.append(np.abs(stored - after).mean())
        from_pixels.append(np.abs(stored - pixels).mean())
        assert from_pillow[-1] <= MOST_FROM_PILLOW, name
        assert from_pixels[-1] <= MOST_FROM_PIXELS, name
    counted = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    return (
        f"{len(files)} hostile files: {counted}; good ones differ from Pillow's by {max(from_pillow):.3f} of 255 on "
        f"average at most, from the pixels by {max(from_pixels):.1f}"
    )


def test_of_photographs(coco160: Path, capsys) -> None:
    photographs = [path.read_bytes() for path in sorted(coco160.glob("*2017/*.jpg"))]
    line = check(list(hostile(photographs, 300)))
    with capsys.disabled():
        print("\n" + line)


def test_of_drawn_pictures(make_picture, encoded) -> None:
    drawn = [encoded(make_picture(seed, 400, 300)) for seed in range(3)]
    check(list(hostile(drawn, 100, seed=1)))
