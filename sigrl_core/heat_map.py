"""Heat maps: where in a picture a label fits, drawn on the picture."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image

OPACITY = 0.65
"""Of the colours over the picture, which is grey below them so that no colour of its own is taken for heat."""
COLOURS = np.array([(20, 11, 52), (101, 21, 110), (186, 54, 85), (243, 120, 25), (252, 255, 164)], np.float32)
"""From where a label fits least to where it fits best; lightness rises all along, so it reads without colour too."""


def heat_map(fit_P: Float[NDArray, " P"], grid: tuple[int, int]) -> Float[NDArray, "h w"]:
    """Patch fits as a map from 0, where this label fits least in this picture, to 1, where it fits best.

    The scale is of one label in one picture: it says where to look and not whether the label is there.
    """
    low, high = float(fit_P.min()), float(fit_P.max())
    return ((fit_P - low) / max(high - low, 1e-12)).reshape(grid)


def to_png(map_HW: Float[NDArray, "h w"]) -> bytes:
    """The map as a small grey picture, white where the label fits best."""
    file = io.BytesIO()
    Image.fromarray((map_HW * 255).round().astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def draw(map_HW: Float[NDArray, "h w"], picture_HWC: UInt8[NDArray, "H W 3"]) -> Image.Image:
    """The map over the picture that it is of, smooth between patches."""
    height, width = picture_HWC.shape[:2]
    smooth = Image.fromarray(map_HW.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    heat_HW = np.asarray(smooth).clip(0, 1)
    stops = np.linspace(0, 1, len(COLOURS))
    colour_HWC = np.stack([np.interp(heat_HW, stops, channel) for channel in COLOURS.T], axis=-1)
    grey_HWC = np.asarray(Image.fromarray(picture_HWC).convert("L"))[..., None]
    return Image.fromarray((grey_HWC * (1 - OPACITY) + colour_HWC * OPACITY).round().astype(np.uint8))
