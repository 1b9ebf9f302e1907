"""Decodes JPEG files with libjpeg-turbo, and finds those whose scan is cut.

For a scan that ends too early, libjpeg fills the rest with grey and only warns. Pillow hides these warnings, and
refuses a file without an end marker although its scan may be complete. simplejpeg returns the pixels that Pillow
returns, and raises the first warning as an error.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import simplejpeg
from PIL import Image, JpegImagePlugin

from sigrl_core.errors import ImageError

FORMATS = ("JPEG", "MPO")
"""Formats of Pillow that this module decodes; MPO is a JPEG with more images after the first."""

_END_MARKER = b"\xff\xd9"
_NO_END_MARKER = "Premature end of JPEG file"
_CUT_SCAN = re.compile("premature end of data segment|found marker 0xd9 instead of RST")
_MARKER_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_START_OF_SCAN, _END_OF_IMAGE, _PROGRESSIVE = 0xDA, 0xD9, (0xC2, 0xCA)
_COLOUR_SPACES = {"RGB": "RGBX", "L": "GRAY", "CMYK": "CMYK"}  # of simplejpeg, by mode of Pillow
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}


def decode_jpeg(data: bytes, header: Image.Image, short_side: int = 0) -> Image.Image:
    """Decodes a JPEG whose header Pillow has read, to the pixels that Pillow returns.

    Args:
        data: the file; its end marker may be missing if no block of the image is.
        header: opened by Pillow, not loaded.
        short_side: large images are decoded at 1/2, 1/4 or 1/8 of their size, with at least twice this short side;
            0 decodes all of them in full size.

    Raises:
        ImageError: `truncated` if blocks of the image are missing.
    """
    if header.info.get("progressive") and not _has_all_scans(data):
        raise ImageError("truncated", "jpeg: scans are missing")
    _reduce(header, short_side)
    try:
        return _decode_strictly(data, header)
    except ValueError as error:
        warning = str(error)
    if _NO_END_MARKER in warning:
        closed = data + _END_MARKER
        try:
            return _decode_strictly(closed, header)
        except ValueError as error:  # with the end marker, libjpeg only warns if the scan is cut
            warning = str(error)
        if _CUT_SCAN.search(warning) is not None:
            _decode_with_pillow(data, short_side)  # its error has the number of bytes, and is that of version 0.1.0
        data = closed
    if _CUT_SCAN.search(warning) is not None:
        raise ImageError("truncated", f"jpeg: {warning}")
    return _decode_with_pillow(data, short_side)  # another warning, such as bytes before a marker


def unsupported_kind(data: bytes) -> str | None:
    """Returns what makes a JPEG undecodable here (lossless, 12 bits); None for the usual kinds and for a cut header."""
    for marker, content in _segments(data):
        if marker in _FRAMES and len(content) > 5:
            bits, components = content[0], content[5]
            if bits != 8:
                return f"{bits} bits per sample"
            if components not in (1, 3, 4):
                return f"{components} components"
            return None if marker in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA) else f"coding {marker:02X}"
    return None


def _has_all_scans(data: bytes) -> bool:
    """Returns whether the scans of a progressive JPEG hold every bit of every coefficient.

    A file that is cut between two scans is a valid one with a coarser image, so libjpeg does not warn.
    """
    missing: dict[int, set[int]] = {}  # coefficients whose last bit is missing, by component
    for marker, content in _segments(data):
        if marker in _PROGRESSIVE:
            missing = {content[6 + 3 * i]: set(range(64)) for i in range(content[5]) if 6 + 3 * i < len(content)}
        elif marker == _START_OF_SCAN and content and len(content) >= 2 * content[0] + 4:
            first, last, bits = content[2 * content[0] + 1 :][:3]
            if bits & 15 == 0:
                for component in content[1 : 2 * content[0] + 1 : 2]:
                    missing.get(component, set()).difference_update(range(first, last + 1))
    return not any(missing.values())


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields the marker and content of each complete segment of the first image; the scans themselves are skipped."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == _END_OF_IMAGE:
            return
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if end > len(data):
            return
        yield marker, data[position + 4 : end]
        position = end
        if marker == _START_OF_SCAN:
            next_marker = _MARKER_AFTER_SCAN.search(data, end)
            if next_marker is None:
                return
            position = next_marker.start()


def _decode_strictly(data: bytes, header: Image.Image) -> Image.Image:
    """Raises ValueError with the text of libjpeg's first warning or error."""
    space = _COLOUR_SPACES[header.mode]
    pixels_HWC = simplejpeg.decode_jpeg(data, space, min_width=header.width, min_height=header.height)
    if pixels_HWC.shape[:2] != (header.height, header.width):
        raise ValueError("another size than Pillow's")
    if space == "RGBX":  # the layout of Pillow's own memory, so nothing is copied
        buffer = pa.py_buffer(np.ascontiguousarray(pixels_HWC))
        flat = pa.Array.from_buffers(pa.uint8(), buffer.size, [None, buffer])  # pa.array would import pandas
        return Image.fromarrow(pa.FixedSizeListArray.from_arrays(flat, 4), "RGB", header.size)
    if space == "GRAY":
        return Image.fromarray(pixels_HWC[..., 0])
    return Image.fromarray(
        np.invert(pixels_HWC), "CMYK"
    )  # Pillow takes every CMYK JPEG for an inverted one, as Adobe's


def _decode_with_pillow(data: bytes, short_side: int) -> Image.Image:
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    _reduce(image, short_side)
    image.load()
    return image


def _reduce(image: Image.Image, short_side: int) -> None:
    if short_side:
        image.draft(image.mode, (2 * short_side, 2 * short_side))
