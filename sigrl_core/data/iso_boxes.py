"""Reads the boxes of an ISO file (AVIF, HEIC): whether all are there, declared sizes, and the crop of AVIF."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

_MAX_HEADER_BYTES = 1_000_000
_SIZE_BOX = re.compile(rb"ispe\0\0\0\0(.{8})", re.DOTALL)


class _Box(NamedTuple):
    kind: bytes
    content: bytes


def has_all_boxes(data: bytes) -> bool:
    """Returns whether the last box ends where the file ends, so that nothing is cut off."""
    position = 0
    while position + 8 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        if length == 1:  # the length follows in 64 bits
            length = int.from_bytes(data[position + 8 : position + 16], "big")
        if length == 0:  # up to the end of the file
            return True
        position += max(length, 8)
    return position == len(data)


def largest_declared_size(data: bytes) -> tuple[int, int]:
    """Returns width and height of the largest image that the header declares; (0, 0) if it declares none."""
    sizes = [struct.unpack(">II", match[1]) for match in _SIZE_BOX.finditer(data, 0, _MAX_HEADER_BYTES)]
    return max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))


def clean_aperture(data: bytes, width: int, height: int) -> tuple[int, int, int, int] | None:
    """Returns the rectangle (left, top, right, bottom) that the primary image shows; None for all of it.

    A damaged property, or one whose rectangle is not inside the image, counts as none.
    """
    try:
        meta = {box.kind: box.content for box in _boxes(next(b for b in _boxes(data) if b.kind == b"meta").content[4:])}
        properties = {box.kind: box.content for box in _boxes(meta[b"iprp"])}
        listed = list(_boxes(properties[b"ipco"]))
        item = int.from_bytes(meta[b"pitm"][4:8] if meta[b"pitm"][0] else meta[b"pitm"][4:6], "big")
        of_item = [listed[i - 1] for i in _associated(properties[b"ipma"], item) if 0 < i <= len(listed)]
        content = next(box.content for box in of_item if box.kind == b"clap")
        width_n, width_d, height_n, height_d, x_n, x_d, y_n, y_d = struct.unpack(">IIIIiIiI", content[:32])
        shown_width, shown_height = Fraction(width_n, width_d), Fraction(height_n, height_d)
        left = Fraction(x_n, x_d) + Fraction(width - shown_width, 2)
        top = Fraction(y_n, y_d) + Fraction(height - shown_height, 2)
    except (KeyError, StopIteration, IndexError, ZeroDivisionError, struct.error):
        return None
    rectangle = round(left), round(top), round(left + shown_width), round(top + shown_height)
    is_inside = 0 <= rectangle[0] < rectangle[2] <= width and 0 <= rectangle[1] < rectangle[3] <= height
    return rectangle if is_inside else None


def _boxes(data: bytes) -> Iterator[_Box]:
    position = 0
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = len(data) if length == 0 else position + max(length, 8)
        yield _Box(kind, data[position + 8 : end])
        position = end


def _associated(table: bytes, item: int) -> list[int]:
    """Returns the numbers, from 1, of the properties of an item (box `ipma`)."""
    version, has_long_numbers = table[0], table[3] & 1
    count, position = int.from_bytes(table[4:8], "big"), 8
    id_bytes, number_bytes = (4 if version else 2), (2 if has_long_numbers else 1)
    for _ in range(min(count, len(table))):
        identifier = int.from_bytes(table[position : position + id_bytes], "big")
        first = position + id_bytes + 1
        position = first + table[first - 1] * number_bytes
        if identifier == item:
            numbers = [table[at : at + number_bytes] for at in range(first, position, number_bytes)]
            mask = 0x7FFF if has_long_numbers else 0x7F
            return [int.from_bytes(number, "big") & mask for number in numbers]
    return []
