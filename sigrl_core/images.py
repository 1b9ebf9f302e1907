"""Pictures from untrusted bytes: decode safely, shrink, encode. What can be wrong has a reason of `REASONS`."""

from __future__ import annotations

import io
import threading
import warnings
from typing import NamedTuple

import imagehash
import numpy as np
from cykooz_resizer import FilterType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image, UnidentifiedImageError

from sigrl_core.errors import ImageError

REASONS = ("truncated", "not_an_image", "too_many_pixels", "empty", "unreachable", "unsupported")
"""Why a picture cannot be used. `truncated`: cut short or damaged; `unsupported`: of a kind we do not read."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm")
"""Endings by which an image folder is listed."""

DEFAULT_MAX_PIXELS = 100_000_000

# A closed list, so that a file's first bytes cannot choose a decoder that nobody expects (EPS starts Ghostscript).
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
_STARTS_OF_FORMATS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")
_STARTS_OF_OTHERS = (b"%PDF", b"%!PS", b"<svg", b"8BPS", b"\0\0\1\0", b"\xff\x0a", b"\0\0\0\x0cJXL", b"SIMPLE")

_ORIENTATION = 0x0112
_TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MAX_EXIF_BYTES = 65_533  # one segment of a JPEG
_BICUBIC = ResizeOptions(ResizeAlg.convolution(FilterType.catmull_rom))  # as Pillow's, in vector instructions

# PIL's own guard stays on for what it checks while decoding, at our number rather than a little below it.
Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, DEFAULT_MAX_PIXELS)
_HEADER_LOCK = threading.Lock()  # warnings.catch_warnings is not safe between threads


class Jpeg(NamedTuple):
    """An encoded picture, its size in pixels, and its perceptual hash (64 bits) where that was asked for."""

    data: bytes
    width: int
    height: int
    perceptual_hash: int | None = None


def decode(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS, short_side: int = 0) -> Image.Image:
    """The picture as 8-bit RGB, upright (EXIF orientation applied), transparency laid on white, first frame of several.

    16-bit and float pictures are scaled to 8 bits, not cut off. Colour profiles are not applied.

    Args:
        max_pixels: larger pictures are refused by their header, before any pixel is decoded; at most 200 million.
        short_side: what the short side will be reduced to later, 0 for nothing; lets big JPEGs decode at a fraction of
            their size, never below twice that.

    Raises:
        ImageError: with a reason of `REASONS`.
    """
    image = _open(data, max_pixels)
    return _load(image, short_side)


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """The RGB picture with its short side at `size` pixels, antialiased bicubic; smaller ones, and size 0, stay."""
    short = min(image.size)
    if not size or short <= size:
        return image
    width, height = (max(size, round(side * size / short)) for side in image.size)
    across = _resize(
        image, (width, image.height)
    )  # first across, then down, as Pillow: photographs are equal within 2 of 255
    return _resize(across, (width, height))


def encode_jpeg(image: Image.Image, quality: int, exif: bytes = b"") -> bytes:
    """JPEG without metadata but `exif`; colour at half resolution as cameras do, at full from quality 95."""
    stream = io.BytesIO()
    subsampling = "4:4:4" if quality >= 95 else "4:2:0"
    image.save(stream, "JPEG", quality=quality, subsampling=subsampling, exif=exif, comment=b"")
    return stream.getvalue()


def to_jpeg(
    data: bytes,
    short_side: int,
    quality: int,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    *,
    keep_exif: bool = False,
    perceptual_hash: bool = False,
) -> Jpeg:
    """Any picture as an upright RGB JPEG of at most `short_side` (0: any), as shards keep them.

    A JPEG that already is one, carries no EXIF or XMP and is small enough keeps its bytes; it is still decoded once,
    so that a damaged one is found. Every other picture is encoded anew, which drops all metadata.

    Args:
        keep_exif: carries EXIF on, places included, with its orientation set to upright; a small upright JPEG with
            EXIF then keeps its bytes too. EXIF that cannot be written into a JPEG is dropped all the same.
        perceptual_hash: whether to hash what is seen (pHash of the upright, shrunken picture), to find near duplicates.

    Raises:
        ImageError: with a reason of `REASONS`.
    """
    image = _open(data, max_pixels)
    small = not short_side or min(image.size) <= short_side
    unwanted = {"xmp"} if keep_exif and _orientation(image) == 1 else {"exif", "xmp"}
    keep = small and image.format == "JPEG" and image.mode == "RGB" and not unwanted & set(image.info)
    picture = resize_short_side(_load(image, short_side), short_side)
    exif = _upright_exif(image) if keep_exif and not keep else b""
    try:
        encoded = data if keep else encode_jpeg(picture, quality, exif)
    except OSError as error:  # JPEG sides end at 65,500 pixels
        raise ImageError("unsupported", f"{picture.width}x{picture.height} does not fit a JPEG: {error}") from error
    return Jpeg(encoded, *picture.size, int(str(imagehash.phash(picture)), 16) if perceptual_hash else None)


def centre_crop_array(image: Image.Image | bytes, size: int, max_pixels: int = DEFAULT_MAX_PIXELS) -> np.ndarray:
    """CLIP's preprocessing: short side to `size` (bicubic), centre square, as uint8 [size, size, 3].

    Resizing, then cropping, up to rounding; only the square is computed, so a 1 x 60,000 picture costs no more.
    """
    image = _load(image, 0) if isinstance(image, Image.Image) else decode(image, max_pixels)
    short = min(image.size)
    scaled = [int(size * side / short) for side in image.size]
    box = []
    for side, target in zip(image.size, scaled, strict=True):
        start = round((target - size) / 2)
        box.append((start * side / target, (start + size) * side / target))
    (left, right), (top, bottom) = box
    inside = (left, top, min(right, image.width), min(bottom, image.height))  # rounding may step over the edge
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, inside))


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    resized = Image.new(image.mode, size)
    Resizer().resize_pil(image, resized, _BICUBIC)
    return resized


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Reads the header only."""
    if not data:
        raise ImageError("empty", "0 bytes")
    try:
        with _HEADER_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities of a stranger's file are not for our log
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError("too_many_pixels", str(error)) from error
    except UnidentifiedImageError as error:
        if data.startswith(_STARTS_OF_FORMATS):
            raise ImageError("truncated", f"{len(data)} bytes end inside the header") from error
        if data.lstrip().startswith(_STARTS_OF_OTHERS) or data[4:8] == b"ftyp":
            raise ImageError("unsupported", f"starts with {data[:12]!r}; known are {', '.join(_FORMATS)}") from error
        raise ImageError("not_an_image", f"starts with {data[:12]!r}") from error
    except Exception as error:  # decoders raise anything from struct.error to SyntaxError on damaged headers
        raise ImageError("truncated", f"{type(error).__name__}: {error}") from error
    if image.width * image.height > max_pixels:
        raise ImageError("too_many_pixels", f"{image.width}x{image.height}; at most {max_pixels} pixels are decoded")
    if not image.width * image.height:
        raise ImageError("empty", f"{image.width}x{image.height} pixels")
    return image


def _load(image: Image.Image, short_side: int) -> Image.Image:
    try:
        if short_side:
            image.draft(image.mode, (2 * short_side, 2 * short_side))  # JPEG: 1/2, 1/4 or 1/8 while decoding
        image.load()
    except (MemoryError, Image.DecompressionBombError) as error:
        raise ImageError("too_many_pixels", f"{type(error).__name__}: {error}") from error
    except Exception as error:
        raise ImageError("truncated", f"{type(error).__name__}: {error}") from error
    try:
        return _rgb(_upright(image))
    except Exception as error:
        raise ImageError("unsupported", f"mode {image.mode}: {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """As EXIF has it: 1 is upright and stands for none as well; 0 where EXIF is damaged."""
    try:
        with _HEADER_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF around a good picture
        return 0


def _upright_exif(image: Image.Image) -> bytes:
    """What a JPEG of the upright picture may carry on of the EXIF of a loaded one."""
    if "exif" not in image.info:  # a TIFF's tags are read like EXIF, but tell of how its pixels are stored
        return b""
    try:
        with _HEADER_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exif = image.getexif()
            exif[_ORIENTATION] = 1
            data = exif.tobytes()
    except Exception:  # damaged EXIF around a good picture
        return b""
    return data if len(data) <= _MAX_EXIF_BYTES else b""


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bits(image)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> np.ndarray:
    """One channel of many bits as uint8. The white of 32-bit files is not written in them: it is the smallest of the
    customary ones (1 for floats, 255, 65,535, 2^31 - 1) that no value exceeds."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0, neginf=0)
    whites = {"I": (65_535, 2**31 - 1), "F": (1, 255, 65_535, 2**31 - 1)}.get(image.mode, (65_535,))
    white = next((white for white in whites if values.max() <= white), values.max())
    return np.rint(values.clip(0) * (255 / white)).astype(np.uint8)
