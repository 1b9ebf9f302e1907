"""Hostile image files: damaged, rotated and misnamed photographs, and files that only look like images."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps

from tests.odd_images import with_declared_size

ORIENTATION = 0x0112


class Hostile(NamedTuple):
    """A file and its expected outcome.

    Attributes:
        kind: the kind of manipulation, for messages.
        expected: "good", a reason of images.REASONS, or "either" if the damage may or may not be detected.
        image: upright RGB image in full size, for good files.
    """

    kind: str
    data: bytes
    expected: str
    image: Image.Image | None = None


def hostile(photographs: Sequence[bytes], count: int, seed: int = 0) -> Iterator[Hostile]:
    """`count` files made from JPEG photographs, each kind of mischief in turn; the same ones for the same arguments."""
    rng = random.Random(seed)
    for number in range(count):
        kind, make = _KINDS[number % len(_KINDS)]
        yield Hostile(kind, *make(rng.choice(photographs), rng))


# Each makes (data, expected) or (data, "good", image) of a photograph.
_Made = tuple[bytes, str] | tuple[bytes, str, Image.Image]
_Maker = Callable[[bytes, random.Random], _Made]


def _rgb(data: bytes) -> Image.Image:
    """As Pillow reads it."""
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def _encoded(image: Image.Image, format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def _read_back(data: bytes) -> _Made:
    return data, "good", _rgb(data)


def _flipped(data: bytes, rng: random.Random) -> _Made:
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 10, 100])):
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(damaged), "either"


def _cut(data: bytes, rng: random.Random) -> _Made:
    return data[: rng.randrange(20, len(data) - 2)], "truncated"


def _cut_png(data: bytes, rng: random.Random) -> _Made:
    whole = _encoded(_rgb(data), "PNG", compress_level=1)
    return whole[: rng.randrange(20, len(whole) * 9 // 10)], "truncated"


def _cut_and_closed(data: bytes, rng: random.Random) -> _Made:
    return data[: rng.randrange(20, len(data) - 2)] + b"\xff\xd9", "truncated"


def _without_end_marker(data: bytes, rng: random.Random) -> _Made:
    whole = _encoded(_rgb(data), "JPEG", progressive=rng.choice([True, False]))
    return whole[: rng.choice([-2, -1])], "good", _rgb(whole)


def _zeros_inside(data: bytes, rng: random.Random) -> _Made:
    start, length = rng.randrange(len(data)), rng.randrange(1, 5000)
    return (data[:start] + bytes(length) + data[start + length :]), "either"


def _spliced(data: bytes, rng: random.Random) -> _Made:
    cut = rng.randrange(len(data))
    return data[:cut] + data[cut // 2 :], "either"


def _random_bytes(data: bytes, rng: random.Random) -> _Made:
    return b"\0" + rng.randbytes(1000), "not_an_image"


def _page_for_image(data: bytes, rng: random.Random) -> _Made:
    return b"<!doctype html><title>404 Not Found</title>", "not_an_image"


def _program(data: bytes, rng: random.Random) -> _Made:
    starts = [
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"%PDF-1.7\n",
        b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>",
    ]
    return rng.choice(starts), "unsupported"


def _png_bomb(data: bytes, rng: random.Random) -> _Made:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    side = rng.choice([10_001, 30_000, 2**31 - 1])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes(10**6), 9))
    return b"\x89PNG\r\n\x1a\n" + header + rows + chunk(b"IEND", b""), "too_many_pixels"


def _jpeg_bomb(data: bytes, rng: random.Random) -> _Made:
    """The photograph, said to be of 65,500 x 65,500 pixels."""
    plain = _encoded(_rgb(data), "JPEG")
    frame = plain.index(b"\xff\xc0")
    return plain[: frame + 5] + struct.pack(">HH", 65_500, 65_500) + plain[frame + 9 :], "too_many_pixels"


def _cut_iso(format: str) -> _Maker:
    def make(data: bytes, rng: random.Random) -> _Made:
        whole = _encoded(_rgb(data).resize((64, 48)), format)
        return whole[: rng.randrange(20, len(whole) - 1)], "truncated"

    return make


def _iso_bomb(format: str) -> _Maker:
    def make(data: bytes, rng: random.Random) -> _Made:
        side = rng.choice([10_001, 30_000, 2**31 - 1])
        return with_declared_size(_encoded(_rgb(data).resize((64, 48)), format), side, side), "too_many_pixels"

    return make


def _gif_bomb(data: bytes, rng: random.Random) -> _Made:
    small = _encoded(Image.new("P", (8, 8)), "GIF")
    return small[:6] + struct.pack("<HH", 65_535, 65_535) + small[10:], "too_many_pixels"


def _too_long_for_a_jpeg(data: bytes, rng: random.Random) -> _Made:
    return _encoded(Image.new("L", rng.choice([(70_000, 1), (1, 70_000)])), "PNG"), "unsupported"


def _thin(data: bytes, rng: random.Random) -> _Made:
    image = Image.new("RGB", rng.choice([(1, 1), (1, 60_000), (60_000, 1)]), (10, 200, 30))
    return _encoded(image, "PNG"), "good", image


def _other_format(format: str, **options) -> _Maker:
    """Makes a file of another format under the name .jpg; only its first bytes define the format."""
    return lambda data, rng: _read_back(_encoded(_rgb(data), format, **options))


def _other_mode(mode: str, format: str, **options) -> _Maker:
    return lambda data, rng: _read_back(_encoded(_rgb(data).convert(mode), format, **options))


def _animated(format: str) -> _Maker:
    def make(data: bytes, rng: random.Random) -> _Made:
        first = _rgb(data)
        later_frames = [ImageOps.invert(first), Image.new("RGB", first.size)]
        return _read_back(_encoded(first, format, save_all=True, append_images=later_frames, duration=50))

    return make


def _turned(orientation: int) -> _Maker:
    def make(data: bytes, rng: random.Random) -> _Made:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        format = rng.choice(["JPEG", "JPEG", "PNG", "WEBP"])
        return _read_back(_encoded(_rgb(data), format, exif=exif))

    return make


def _damaged_exif(data: bytes, rng: random.Random) -> _Made:
    image = _rgb(data)
    exif = b"Exif\0\0II*\0" + rng.randbytes(rng.randrange(40)).replace(struct.pack("<H", ORIENTATION), b"")
    return _encoded(image, "JPEG", exif=exif), "good", _rgb(_encoded(image, "JPEG"))


def _profile(data: bytes, rng: random.Random) -> _Made:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return _read_back(_encoded(_rgb(data), "JPEG", icc_profile=rng.choice([profile, rng.randbytes(300)])))


def _cmyk_without_adobe(data: bytes, rng: random.Random) -> _Made:
    cmyk = _encoded(_rgb(data).convert("CMYK"), "JPEG", quality=95)
    start = cmyk.index(b"\xff\xee")
    length = int.from_bytes(cmyk[start + 2 : start + 4], "big")
    return _read_back(cmyk[:start] + cmyk[start + 2 + length :])


def _deep(format: str) -> _Maker:
    def make(data: bytes, rng: random.Random) -> _Made:
        grey = _rgb(data).convert("L")
        deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
        return _encoded(deep, format), "good", grey.convert("RGB")

    return make


def _half_transparent(data: bytes, rng: random.Random) -> _Made:
    image = _rgb(data)
    fading = Image.linear_gradient("L").resize(image.size)
    on_white = Image.composite(image, Image.new("RGB", image.size, "white"), fading)
    image.putalpha(fading)
    return _encoded(image, "PNG", compress_level=1), "good", on_white


def _palette_with_hole(data: bytes, rng: random.Random) -> _Made:
    """One palette colour is transparent, and so white."""
    palette = _rgb(data).quantize(64)
    hole = np.asarray(palette) == 0
    pixels = np.asarray(palette.convert("RGB")).copy()
    pixels[hole] = 255
    return _encoded(palette, rng.choice(["PNG", "GIF"]), transparency=0), "good", Image.fromarray(pixels)


_KINDS: list[tuple[str, _Maker]] = [
    ("as it is", lambda data, rng: _read_back(data)),
    ("bits flipped", _flipped),
    ("cut", _cut),
    ("cut PNG", _cut_png),
    ("cut and closed", _cut_and_closed),
    ("zeros inside", _zeros_inside),
    ("spliced", _spliced),
    ("empty", lambda data, rng: (b"", "empty")),
    ("random bytes", _random_bytes),
    ("a page", _page_for_image),
    ("a program", _program),
    ("no end marker", _without_end_marker),
    ("HEIC named .jpg", _other_format("HEIF")),
    ("AVIF named .jpg", _other_format("AVIF", speed=10)),
    ("cut HEIC", _cut_iso("HEIF")),
    ("cut AVIF", _cut_iso("AVIF")),
    ("HEIC bomb", _iso_bomb("HEIF")),
    ("AVIF bomb", _iso_bomb("AVIF")),
    ("PNG bomb", _png_bomb),
    ("JPEG bomb", _jpeg_bomb),
    ("GIF bomb", _gif_bomb),
    ("too long for a JPEG", _too_long_for_a_jpeg),
    ("thin", _thin),
    ("PNG named .jpg", _other_format("PNG", compress_level=1)),
    ("WebP named .jpg", _other_format("WEBP")),
    ("BMP named .jpg", _other_format("BMP")),
    ("TIFF named .jpg", _other_format("TIFF", compression="tiff_lzw")),
    ("progressive", _other_format("JPEG", progressive=True)),
    ("4:4:4", _other_format("JPEG", subsampling="4:4:4", quality=95)),
    ("grey JPEG", _other_mode("L", "JPEG")),
    ("bilevel", _other_mode("1", "PNG")),
    ("palette", _other_mode("P", "PNG")),
    ("CMYK, inverted by Adobe", _other_mode("CMYK", "JPEG", quality=95)),
    ("CMYK without Adobe", _cmyk_without_adobe),
    ("CMYK TIFF", _other_mode("CMYK", "TIFF")),
    ("animated GIF", _animated("GIF")),
    ("animated WebP", _animated("WEBP")),
    ("animated PNG", _animated("PNG")),
    ("colour profile", _profile),
    ("16-bit PNG", _deep("PNG")),
    ("16-bit TIFF", _deep("TIFF")),
    ("half transparent", _half_transparent),
    ("palette with a hole", _palette_with_hole),
    ("damaged EXIF", _damaged_exif),
    *((f"EXIF orientation {orientation}", _turned(orientation)) for orientation in range(1, 9)),
]
