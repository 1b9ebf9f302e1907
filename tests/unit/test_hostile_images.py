"""Hostile files: each becomes an upright image as with Pillow alone, or an ImageError with a reason."""

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sigrl_core.data import images
from sigrl_core.errors import ImageError
from tests.hostile import Hostile, hostile

pytestmark = pytest.mark.unit

SHORT_SIDE, QUALITY = 256, 90
MAX_DIFFERENCE_FROM_PILLOW = 0.5
"""Mean difference, in grey levels of 255, from the JPEG of Pillow alone."""
MAX_DIFFERENCE_FROM_PIXELS = 8.0
"""Mean difference, in grey levels, from the pixels before encoding."""


def made_by_pillow(original: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels of the resized image, before and after JPEG encoding."""
    short = min(original.size)
    if short > SHORT_SIDE:
        width, height = (max(SHORT_SIDE, round(side * SHORT_SIDE / short)) for side in original.size)
        original = original.resize((width, height), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    original.save(stream, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return np.asarray(original, int), np.asarray(Image.open(stream).convert("RGB"), int)


def outcome(data: bytes) -> images.Jpeg | str:
    """Returns a JPEG, or the reason of its failure."""
    try:
        return images.to_jpeg(data, SHORT_SIDE, QUALITY, chroma="4:2:0", long_side="nearest")
    except ImageError as error:
        return error.reason


def check(files: Sequence[Hostile]) -> str:
    """Checks all files; returns a line of statistics."""
    outcomes, from_pillow, from_pixels = Counter(), [0.0], [0.0]
    for number, (kind, data, expected, original) in enumerate(files):
        name = f"{number}: {kind}"
        jpeg = outcome(data)
        result = jpeg if isinstance(jpeg, str) else "good"
        outcomes[result] += 1
        assert result in ("good", *images.REASONS), name
        assert expected in (result, "either"), f"{name}: {result}, expected {expected}"
        assert outcome(data) == jpeg, name
        if isinstance(jpeg, str):
            continue
        image = Image.open(io.BytesIO(jpeg.data))
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (jpeg.width, jpeg.height)), name
        if original is None or jpeg.data == data:
            continue
        pixels, after = made_by_pillow(original)
        stored = np.asarray(image, int)
        assert stored.shape == pixels.shape, name
        from_pillow.append(np.abs(stored - after).mean())
        from_pixels.append(np.abs(stored - pixels).mean())
        # dithering has only black and white pixels, so rounding in the resize shows more
        assert from_pillow[-1] <= MAX_DIFFERENCE_FROM_PILLOW * (2 if kind == "bilevel" else 1), name
        assert from_pixels[-1] <= MAX_DIFFERENCE_FROM_PIXELS, name
    counted = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    return (
        f"{len(files)} hostile files: {counted}; good ones differ from Pillow's by {max(from_pillow):.3f} of 255 on "
        f"average at most, from the pixels by {max(from_pixels):.1f}"
    )


@pytest.mark.soak
def test_photographs(coco160: Path, capsys, soak: bool) -> None:
    photographs = [path.read_bytes() for path in sorted(coco160.glob("*2017/*.jpg"))]
    line = check(list(hostile(photographs, 300 if soak else 150)))
    with capsys.disabled():
        print("\n" + line)


def test_drawn_images(make_image, encoded) -> None:
    drawn = [encoded(make_image(seed, 400, 300)) for seed in range(3)]
    check(list(hostile(drawn, 100, seed=1)))
