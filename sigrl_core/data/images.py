"""Decodes images from untrusted bytes safely, resizes and encodes them. Every failure has a reason of `REASONS`."""

from __future__ import annotations

import io
import math
import re
import threading
import warnings
from typing import Literal, NamedTuple

import imagehash
import numpy as np
from cykooz_resizer import FilterType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from sigrl_core.data import iso_boxes, jpeg, png, tiff
from sigrl_core.data.signatures import format_of
from sigrl_core.errors import ImageError

REASONS = ("truncated", "not_an_image", "too_many_pixels", "empty", "unreachable", "unsupported")
"""Why an image cannot be used. `truncated`: incomplete or damaged; `unsupported`: a format that is not decoded."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm")
"""File name endings that count as images when a folder is listed."""

DEFAULT_MAX_PIXELS = 100_000_000

Chroma = Literal["4:4:4", "4:2:0"]
LongSide = Literal["aligned", "nearest"]

ALIGNED_SIZES = (224, 336)
"""Image sizes of the usual CLIP models, whose crops `resize_short_side` keeps in place."""

# A closed list, so that a file's first bytes cannot select an unexpected decoder (EPS starts Ghostscript).
_FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"]
try:
    from pillow_heif import register_heif_opener

    register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)
    _FORMATS.append("HEIF")
except ImportError:  # the package has no wheel for this platform; HEIC is then `unsupported`
    pass
_DECODED = {
    "jpeg",
    "png",
    "webp",
    "gif",
    "bmp",
    "avif",
    "jpeg2000",
    "ppm",
    "pgm",
    "pbm",
}  # besides TIFF, of `format_of`

_UNSUPPORTED = re.compile("[Uu]nsupported|not supported|unknown raw mode")
"""Messages of decoders about a kind of file that they do not decode; other messages are about damage."""

_ORIENTATION = 0x0112
_TRANSPOSITIONS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MAX_EXIF_BYTES = 65_533  # one segment of a JPEG
_BICUBIC = ResizeOptions(ResizeAlg.convolution(FilterType.catmull_rom))  # equals Pillow's, in vector instructions

# Pillow's own limit also applies while decoding; raise it to ours, which is a little higher.
Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, DEFAULT_MAX_PIXELS)
_HEADER_LOCK = threading.Lock()  # warnings.catch_warnings is not safe between threads


class Jpeg(NamedTuple):
    """An encoded image, its size in pixels, and its 64-bit perceptual hash if requested."""

    data: bytes
    width: int
    height: int
    perceptual_hash: int | None = None


def decode(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS, short_side: int = 0) -> Image.Image:
    """Decodes the first frame to 8-bit RGB, upright (EXIF orientation applied), on white where it is transparent.

    16-bit images are scaled to 8 bits, not clipped; for 32 bits see `_to_8_bits`. Colour profiles are not applied.

    Args:
        max_pixels: larger images are refused by their header, before any pixel is decoded; at most 200 million.
        short_side: size of the short side after a later resize, 0 for no resize; large JPEGs are then decoded at a
            fraction of their size, with at least twice this short side.

    Raises:
        ImageError: with a reason of `REASONS`.
    """
    return _load(_open(data, max_pixels), short_side, data)


def resize_short_side(
    image: Image.Image, size: int, long_side: LongSide = "aligned", full_size: tuple[int, int] | None = None
) -> Image.Image:
    """Shrinks an RGB image to a short side of `size` pixels (antialiased bicubic); never enlarges; size 0 keeps it.

    Args:
        long_side: `aligned` rounds the long side so that `centre_crop_array` for a model of one of `ALIGNED_SIZES`
            covers the same square as on the original image; `nearest` rounds to the nearest pixel, which moves this
            square by up to a pixel.
        full_size: sides of the image, in any order, if it was decoded at a fraction of its size.
    """
    short, long = sorted(image.size)
    if not size or short <= size:
        return image
    resized_long = round(long * size / short)
    if long_side == "aligned":
        short_before, long_before = sorted(full_size or image.size)
        resized_long = _aligned_long_side(short_before, long_before, size)
    width, height = (resized_long if side > short else size for side in image.size)
    # horizontally first, then vertically, as Pillow: photographs are equal within 2 of 255
    return _resize(_resize(image, (width, image.height)), (width, height))


def _aligned_long_side(short: int, long: int, size: int) -> int:
    """Returns the long side, next to its exact length, for which the crops of most of `ALIGNED_SIZES` stay in place.

    A model of `m` pixels resizes the long side to int(m * long / short) and crops the centre. The crop is the same part
    of the long side exactly if this integer is the same. Where two models need different lengths, the model of `size`
    pixels comes first, then the others in order.
    """
    models = sorted((m for m in ALIGNED_SIZES if m <= size), key=lambda m: m != size)
    floor = size * long // short

    def misplaced(candidate: int) -> tuple[list[bool], float]:
        return [int(m * candidate / size) != int(m * long / short) for m in models], abs(
            candidate - size * long / short
        )

    return min(range(max(size, floor - 1), floor + 3), key=misplaced)


def encode_jpeg(image: Image.Image, quality: int, exif: bytes = b"", chroma: Chroma = "4:2:0") -> bytes:
    """Encodes a JPEG whose only metadata is `exif`; colour has the full (4:4:4) or half the resolution (4:2:0)."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, subsampling=chroma, exif=exif, comment=b"")
    return stream.getvalue()


def to_jpeg(
    data: bytes,
    short_side: int,
    quality: int,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    *,
    chroma: Chroma = "4:4:4",
    long_side: LongSide = "aligned",
    keep_exif: bool = False,
    perceptual_hash: bool = False,
) -> Jpeg:
    """Converts an image to an upright RGB JPEG with a short side of at most `short_side` (0: any), for a shard.

    An upright RGB JPEG without EXIF and XMP that is small enough keeps its bytes; it is still decoded, to find damage.
    Every other image is encoded again, which drops all metadata.

    Args:
        chroma: resolution of colour in an image that is encoded again, see `encode_jpeg`.
        long_side: rounding of the long side, see `resize_short_side`.
        keep_exif: keeps EXIF, including GPS positions, with the orientation set to upright; a small upright JPEG with
            EXIF then keeps its bytes too. EXIF that cannot be written into a JPEG is dropped.
        perceptual_hash: also hashes the visible content (pHash of the upright, resized image), for near duplicates.

    Raises:
        ImageError: with a reason of `REASONS`.
    """
    image = _open(data, max_pixels)
    full_size = image.size
    small = not short_side or min(full_size) <= short_side
    unwanted = {"xmp"} if keep_exif and _orientation(image) == 1 else {"exif", "xmp"}
    keep = small and image.format == "JPEG" and image.mode == "RGB" and not unwanted & set(image.info)
    resized = resize_short_side(_load(image, short_side, data), short_side, long_side, full_size)
    exif = _upright_exif(image) if keep_exif and not keep else b""
    try:
        encoded = data if keep else encode_jpeg(resized, quality, exif, chroma)
    except OSError as error:  # JPEG sides end at 65,500 pixels
        raise ImageError("unsupported", f"{resized.width}x{resized.height} does not fit a JPEG: {error}") from error
    return Jpeg(encoded, *resized.size, int(str(imagehash.phash(resized)), 16) if perceptual_hash else None)


def centre_crop_array(image: Image.Image | bytes, size: int, max_pixels: int = DEFAULT_MAX_PIXELS) -> np.ndarray:
    """Applies CLIP's preprocessing: short side to `size` (bicubic), then the centre square, uint8 [size, size, 3].

    Equal to resizing, then cropping, up to rounding. Only the square is computed, so a 1 x 60,000 image is no slower.
    """
    image = _load(image) if isinstance(image, Image.Image) else decode(image, max_pixels)
    short = min(image.size)
    scaled = [int(size * side / short) for side in image.size]
    box = []
    for side, target in zip(image.size, scaled, strict=True):
        start = round((target - size) / 2)
        box.append((start * side / target, (start + size) * side / target))
    (left, right), (top, bottom) = box
    inside = (left, top, min(right, image.width), min(bottom, image.height))  # rounding may exceed the edge
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
        image = _read_header(data)
    except Image.DecompressionBombError as error:
        pixels = re.search(r"(\d+) pixels", str(error))
        raise _too_many_pixels(f"{pixels[1]} pixels" if pixels else "its header", max_pixels) from error
    except Exception as error:  # decoders raise any error, from struct.error to SyntaxError, for damaged headers
        raise _refusal(data, error, max_pixels) from error
    width, height = image.size
    if image.format in ("AVIF", "HEIF"):  # a crop may hide the size that is decoded
        width, height = max(image.size, iso_boxes.largest_declared_size(data), key=math.prod)
    if width * height > max_pixels:
        raise _too_many_pixels(f"{width}x{height}", max_pixels)
    if not image.width * image.height:
        raise ImageError("empty", f"{image.width}x{image.height} pixels")
    if image.format == "TIFF":
        if format_of(data) == "raw":  # Canon's CR2 begins like a TIFF
            raise ImageError("unsupported", "raw: its preview is not the image")
        tiff.check(image)
    return image


def _read_header(data: bytes) -> Image.Image:
    with _HEADER_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a user's log does not need the oddities of a file
        try:
            return Image.open(io.BytesIO(data), formats=_FORMATS)
        except (UnidentifiedImageError, ValueError, OSError, SyntaxError):
            if format_of(data) != "png":
                raise
            return Image.open(io.BytesIO(png.without_metadata(data)), formats=_FORMATS)


def _too_many_pixels(size: str, max_pixels: int) -> ImageError:
    limit = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
    return ImageError("too_many_pixels", f"{size}; at most {limit} pixels are decoded")


def _refusal(data: bytes, error: Exception, max_pixels: int) -> ImageError:
    """Returns the error for a file that Pillow does not open."""
    name = format_of(data)
    if name is None or name == "html":
        return ImageError("not_an_image", name or f"starts with {data[:12]!r}")
    if name == "tiff":
        return tiff.refusal(data)
    if name == "jpeg" and (kind := jpeg.unsupported_kind(data)) is not None:
        return ImageError("unsupported", f"jpeg: {kind}")
    if name not in _DECODED and not (name == "heic" and "HEIF" in _FORMATS):
        return ImageError("unsupported", f"{name}; decoded are {', '.join(_FORMATS)}")
    if name in ("avif", "heic"):
        width, height = iso_boxes.largest_declared_size(data)
        if width * height > max_pixels:
            return _too_many_pixels(f"{width}x{height}", max_pixels)
        if iso_boxes.has_all_boxes(data):
            return ImageError("unsupported", f"{name}: its decoder does not open this kind")
    if _UNSUPPORTED.search(str(error)) is not None:
        return ImageError("unsupported", f"{name}: {error}")
    if isinstance(error, UnidentifiedImageError):
        return ImageError("truncated", f"{len(data)} bytes end inside the header")
    return ImageError("truncated", f"{type(error).__name__}: {error}")


def _load(image: Image.Image, short_side: int = 0, data: bytes | None = None) -> Image.Image:
    """Decodes the pixels of an opened image; `data` is its file, None for an image that the caller has opened."""
    try:
        pixels = image if data is None else _decode_pixels(image, short_side, data)
        pixels.load()
    except ImageError:
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        raise ImageError("too_many_pixels", f"{type(error).__name__}: {error}") from error
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        if _UNSUPPORTED.search(message) is not None or tiff.needs_missing_codec(image):
            raise ImageError("unsupported", f"{str(image.format).lower()}: {message}") from error
        raise ImageError("truncated", message) from error
    try:
        return _rgb(_upright(pixels, _orientation(image)))
    except Exception as error:
        raise ImageError("unsupported", f"{str(image.format).lower()}: mode {image.mode}: {error}") from error


def _decode_pixels(image: Image.Image, short_side: int, data: bytes) -> Image.Image:
    if image.format in jpeg.FORMATS:
        return jpeg.decode_jpeg(data, image, short_side)
    if image.format == "AVIF":
        rectangle = iso_boxes.clean_aperture(data, *image.size)
        return image if rectangle is None else image.crop(rectangle)
    if image.format != "PNG":
        return image
    try:
        image.load()
    except (ValueError, OSError, SyntaxError):  # also for damaged metadata after the pixels
        image = PngImagePlugin.PngImageFile(io.BytesIO(png.without_metadata(data)))
        image.load()
    return png.with_transparency(image, data)


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    transposition = _TRANSPOSITIONS.get(orientation)
    return image if transposition is None else image.transpose(transposition)


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation: 1 for upright or no EXIF, 0 for damaged EXIF."""
    try:
        with _HEADER_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF around a good image
        return 0


def _upright_exif(image: Image.Image) -> bytes:
    """Returns the EXIF of a loaded image for a JPEG of the upright image; empty if there is none to keep."""
    if "exif" not in image.info:  # Pillow returns a TIFF's own tags, which describe its storage
        return b""
    try:
        with _HEADER_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exif = image.getexif()
            exif[_ORIENTATION] = 1
            data = exif.tobytes()
    except Exception:  # damaged EXIF around a good image
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
    """Scales one channel of 16 or 32 bits to uint8; negative values and NaN are black.

    White is 65,535 for 16 bits. A file of 32 bits, or of 16 with a sign, does not name its white value. It is then the
    value that one pixel in a thousand exceeds, but at least 1 for floats and 255 for whole numbers. So a slightly
    larger value never changes the image much, and neither does a single very large one.
    """
    values = np.asarray(image)
    if image.mode == "I" and tiff.is_unsigned_32(image):
        values = values.view(np.uint32)
    values = values.astype(np.float64)
    if image.mode in ("I", "F") and image.format != "PPM":  # PPM names its white value, and Pillow scales it to 65,535
        finite = values[np.isfinite(values)]
        largest = np.quantile(finite, 0.999, method="lower") if finite.size else 0
        white = max(largest, 1 if image.mode == "F" else 255)
    else:
        white = 1 if image.mode == "F" else 65_535
    return np.rint(np.nan_to_num(np.clip(values / white, 0, 1)) * 255).astype(np.uint8)
