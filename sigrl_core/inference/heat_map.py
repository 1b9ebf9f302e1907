"""Heat maps: how well each region of an image fits a label."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image

OPACITY = 0.65
"""Opacity of the colours. The image below them is grey, so that its own colours are not mistaken for heat."""
COLOURS = np.array([(20, 11, 52), (101, 21, 110), (186, 54, 85), (243, 120, 25), (252, 255, 164)], np.float32)
"""RGB from the worst to the best fit. Lightness rises steadily, so the map is readable without colour vision."""


def heat_map(fit_P: Float[NDArray, " P"], grid: tuple[int, int]) -> Float[NDArray, "h w"]:
    """Scales patch fits to a map from 0, the worst fit of this label in this image, to 1, the best.

    The scale belongs to one label in one image: it shows where the label fits best, not whether the label is present.
    """
    low, high = float(fit_P.min()), float(fit_P.max())
    return ((fit_P - low) / max(high - low, 1e-12)).reshape(grid)


def to_png(map_HW: Float[NDArray, "h w"]) -> bytes:
    """Encodes a map as a small greyscale PNG, white where the label fits best."""
    file = io.BytesIO()
    Image.fromarray((map_HW * 255).round().astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def draw(map_HW: Float[NDArray, "h w"], image_HWC: UInt8[NDArray, "H W 3"]) -> Image.Image:
    """Draws a map over its image, interpolated between patches."""
    height, width = image_HWC.shape[:2]
    smooth = Image.fromarray(map_HW.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    heat_HW = np.asarray(smooth).clip(0, 1)
    stops = np.linspace(0, 1, len(COLOURS))
    colour_HWC = np.stack([np.interp(heat_HW, stops, channel) for channel in COLOURS.T], axis=-1)
    grey_HWC = np.asarray(Image.fromarray(image_HWC).convert("L"))[..., None]
    return Image.fromarray((grey_HWC * (1 - OPACITY) + colour_HWC * OPACITY).round().astype(np.uint8))
