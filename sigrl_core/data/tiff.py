"""Refuses TIFF files that Pillow decodes incorrectly: to noise or black, or to the preview of a camera RAW file."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from PIL import Image, ImagePalette, TiffImagePlugin

from sigrl_core.errors import ImageError

_BITS, _COMPRESSION, _PHOTOMETRIC, _MAKE = 258, 259, 262, 271
_STRIPS, _SAMPLES, _STRIP_BYTES, _PLANAR, _COLOUR_MAP = 273, 277, 279, 284, 320
_SUBFILE_TYPE, _TILES, _TILE_BYTES, _SUB_IFDS, _SAMPLE_FORMAT, _DNG_VERSION = 254, 324, 325, 330, 339, 50706
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4
_FORMAT_NAMES = {_UNSIGNED: "unsigned", _SIGNED: "signed", _FLOAT: "float"}
_WHITE_IS_ZERO, _PALETTE, _COLOUR_FILTER_ARRAY, _LINEAR_RAW = 0, 3, 32803, 34892
_UNCOMPRESSED, _SEPARATE = 1, 2
_OPTIONAL_COMPRESSIONS = (34676, 34677, 50001)  # SGI LogLuv, WebP


def check(image: Image.Image) -> None:
    """Raises ImageError for a TIFF that Pillow has opened but would decode incorrectly; corrects its palette."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    if (kind := _kind_of_raw(tags)) is not None:
        raise ImageError("unsupported", kind)
    if _is_decoded_incorrectly(tags):
        raise ImageError("unsupported", _describe(tags))
    colours = tags.get(_COLOUR_MAP, ())
    if image.mode == "P" and colours and max(colours) < 256:  # some writers do not scale them to 16 bits
        image.palette = ImagePalette.raw("RGB;L", bytes(colours))


def refusal(data: bytes) -> ImageError:
    """Returns the error for a TIFF that Pillow does not open."""
    if data[:4] == b"MM\0+":
        return ImageError("unsupported", "tiff: big-endian BigTIFF")
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2] == 43 else 8])  # 43: BigTIFF
        stream = io.BytesIO(data)
        stream.seek(tags.next)
        tags.load(stream)
        if (kind := _kind_of_raw(tags)) is not None:
            return ImageError("unsupported", kind)
        starts, lengths = (
            _values(tags, strips, tiles) for strips, tiles in ((_STRIPS, _TILES), (_STRIP_BYTES, _TILE_BYTES))
        )
        if starts and max(start + length for start, length in zip(starts, lengths, strict=True)) <= len(data):
            return ImageError("unsupported", _describe(tags))
    except Exception as error:  # any, from struct.error to TypeError, for damaged directories
        return ImageError("truncated", f"tiff: {type(error).__name__}: {error}")
    return ImageError("truncated", f"tiff: {len(data)} bytes do not hold all pixels")


def needs_missing_codec(image: Image.Image) -> bool:
    """Returns whether a TIFF has a compression that libtiff often lacks; its decoder then only says that it failed."""
    return getattr(image, "tag_v2", {}).get(_COMPRESSION) in _OPTIONAL_COMPRESSIONS


def is_unsigned_32(image: Image.Image) -> bool:
    """Returns whether the numbers of an image of mode I are unsigned, which Pillow returns as signed."""
    return image.format == "TIFF" and _formats(getattr(image, "tag_v2", {})) == {_UNSIGNED}


def _kind_of_raw(tags: Mapping[int, Any]) -> str | None:
    """Names the kind of a camera RAW file; its first directory often holds a preview only."""
    if _DNG_VERSION in tags:
        return "raw: DNG"
    is_preview = tags.get(_SUBFILE_TYPE, 0) & 1 and _SUB_IFDS in tags
    if is_preview or tags.get(_PHOTOMETRIC) in (_COLOUR_FILTER_ARRAY, _LINEAR_RAW):
        return f"raw: camera file of {str(tags.get(_MAKE, 'an unknown make')).strip()[:40]}"
    return None


def _is_decoded_incorrectly(tags: Mapping[int, Any]) -> bool:
    """Returns whether Pillow 12 and 13 return other pixels than libtiff and tifffile, or none."""
    bits, formats = max(_values(tags, _BITS) or (1,)), _formats(tags)
    compressed = tags.get(_COMPRESSION, _UNCOMPRESSED) != _UNCOMPRESSED
    if tags.get(_PLANAR) == _SEPARATE and (samples := tags.get(_SAMPLES, 1)) > 1:
        return samples == 2 or (bits > 8 and not compressed)  # noise
    if bits <= 8:
        return formats != {_UNSIGNED}
    if bits == 16 and formats == {_UNSIGNED}:
        return tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO  # not inverted
    is_big_endian = getattr(tags, "prefix", b"II") == b"MM"
    return tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO or (is_big_endian and compressed)  # bytes in the wrong order


def _formats(tags: Mapping[int, Any]) -> set[int]:
    return {_UNSIGNED if each == _UNDEFINED else each for each in _values(tags, _SAMPLE_FORMAT) or (_UNSIGNED,)}


def _values(tags: Mapping[int, Any], *names: int) -> tuple:
    """Returns all values of the first tag that is present; a tag with one value may be no tuple."""
    value = next((tags[name] for name in names if name in tags), ())
    return value if isinstance(value, tuple) else (value,)


def _describe(tags: Mapping[int, Any]) -> str:
    bits = "/".join(map(str, sorted(set(_values(tags, _BITS) or (1,)))))
    formats = "/".join(_FORMAT_NAMES.get(each, f"format {each}") for each in sorted(_formats(tags)))
    planar = ", separate planes" if tags.get(_PLANAR) == _SEPARATE else ""
    return (
        f"tiff: {tags.get(_SAMPLES, 1)} samples of {bits} bits ({formats}){planar}, photometric "
        f"{tags.get(_PHOTOMETRIC)}, compression {tags.get(_COMPRESSION, _UNCOMPRESSED)}"
    )
