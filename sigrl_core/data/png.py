"""What Pillow leaves out of PNG: images with damaged metadata, and transparent colours of images that are not 8-bit."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image, PngImagePlugin

_SIGNATURE_LENGTH = 8
_CHUNK_OVERHEAD = 12  # length, type, checksum
_CHUNKS_OF_THE_IMAGE = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"}
_GREY, _RGB = 0, 2


def without_metadata(data: bytes) -> bytes:
    """Returns the file with only those chunks that define its pixels and its orientation."""
    kept, position = [data[:_SIGNATURE_LENGTH]], _SIGNATURE_LENGTH
    while position + _CHUNK_OVERHEAD <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + _CHUNK_OVERHEAD + length
        if kind in _CHUNKS_OF_THE_IMAGE:
            kept.append(data[position:end])
        position = end
    return b"".join(kept)


def with_transparency(image: Image.Image, data: bytes) -> Image.Image:
    """Returns a loaded PNG, with an alpha channel if it declares a transparent colour that is not of 8 bits.

    Pillow compares such a colour with pixels that it has already converted to 8 bits, or ignores it.
    """
    depth, colour_type = data[24:26]
    colour = image.info.get("transparency")
    if colour is None or depth == 8 or colour_type not in (_GREY, _RGB):
        return image
    if colour_type == _RGB:
        high, low = np.asarray(image), np.asarray(_low_bytes(data))
        transparent = ((high.astype(np.uint16) << 8 | low) == np.asarray(colour, np.uint16)).all(axis=2)
        opaque = image.copy()
    elif depth == 16:
        values = np.asarray(image)
        transparent = values == colour
        opaque = Image.fromarray(np.rint(values * (255 / 65_535)).astype(np.uint8))
    else:
        opaque = image.convert("L")
        transparent = np.asarray(opaque) == (colour if depth == 1 else colour * 255 // (2**depth - 1))
    opaque.info.pop("transparency", None)
    opaque.putalpha(Image.fromarray(np.where(transparent, 0, 255).astype(np.uint8)))
    return opaque


def _low_bytes(data: bytes) -> Image.Image:
    """Decodes the low bytes of an RGB image of 16 bits; Pillow decodes the high ones by default."""
    image = PngImagePlugin.PngImageFile(io.BytesIO(without_metadata(data)))
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
    image.load()
    return image
