"""Pictures from strangers: every one becomes RGB or an ImageError with a reason, never a warning or another error."""

import io
import resource
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from sigrl_core import images
from sigrl_core.errors import ImageError

pytestmark = pytest.mark.unit


def png(width: int, height: int, depth: int = 8, rows: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def reason(data: bytes, **options) -> str:
    with pytest.raises(ImageError) as caught:
        images.decode(data, **options)
    assert caught.value.reason in images.REASONS
    return caught.value.reason


def test_reasons(make_picture, encoded) -> None:
    jpeg = encoded(make_picture(0))
    assert reason(b"") == "empty"
    assert reason(b"just text in a .jpg") == "not_an_image"
    assert reason(bytes(500)) == "not_an_image"
    assert reason(b"%PDF-1.7 ...") == "unsupported"
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n") == "unsupported"
    assert reason(b"<svg xmlns='http://www.w3.org/2000/svg'/>") == "unsupported"
    assert reason(jpeg, max_pixels=64 * 48 - 1) == "too_many_pixels"
    assert images.decode(jpeg, max_pixels=64 * 48).size == (64, 48)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_every_truncation_is_found_or_harmless(make_picture, encoded, format: str) -> None:
    data = encoded(make_picture(1), format)
    assert reason(data[: len(data) // 2]) == "truncated"
    found = set()
    for length in range(1, len(data), max(1, len(data) // 60)):
        try:
            images.decode(data[:length])
        except ImageError as error:
            found.add(error.reason)
    assert found <= {"truncated", "not_an_image"}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF"]), st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_never_raises_anything_else(format: str, position: int, value: int) -> None:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((40, 30)).convert("RGB").save(stream, format)
    data = bytearray(stream.getvalue())
    data[position % len(data)] = value
    try:
        image = images.decode(bytes(data), max_pixels=10_000)
    except ImageError:
        return
    assert image.mode == "RGB"


def test_a_bomb_is_refused_by_its_header() -> None:
    bomb = png(20_000, 20_000, rows=bytes(1000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert reason(bomb) == "too_many_pixels"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB; the pixels would be 400,000
    assert reason(png(9_900, 10_200)) == "too_many_pixels"  # below PIL's own error, above ours
    assert images.decode(png(9_500, 9_500, depth=1, rows=bytes(9_500 * 1_189))).size == (
        9_500,
        9_500,
    )  # above its warning


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(make_picture, encoded, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(make_picture(2), quality=95, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(images.decode(data), expected)
    jpeg = images.to_jpeg(data, 0, 90)
    assert not Image.open(io.BytesIO(jpeg.data)).getexif()
    assert (jpeg.width, jpeg.height) == expected.size


def test_damaged_exif_around_a_good_picture(make_picture, encoded) -> None:
    assert images.decode(encoded(make_picture(3), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")).size == (64, 48)


def test_colours_of_every_mode(make_picture, encoded) -> None:
    picture = make_picture(4)
    for mode, format in [("CMYK", "JPEG"), ("L", "JPEG"), ("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("YCbCr", "TIFF")]:
        found = images.decode(encoded(picture.convert(mode), format))
        assert found.mode == "RGB"
        reference = picture.convert(mode).convert("RGB")
        assert np.abs(np.asarray(found, int) - np.asarray(reference, int)).mean() < 6


def test_transparency_is_laid_on_white(encoded) -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert images.decode(encoded(clear, "PNG")).getpixel((0, 0)) == (255, 255, 255)
    assert images.decode(encoded(half, "PNG")).getpixel((0, 0)) == (127, 127, 127)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 10, 10])
    assert images.decode(encoded(palette, "PNG", transparency=1)).getpixel((0, 0)) == (255, 255, 255)
    assert images.decode(encoded(palette, "PNG", transparency=b"\xff\x00")).getpixel((0, 0)) == (255, 255, 255)
    assert images.decode(encoded(palette, "PNG")).getpixel((0, 0)) == (200, 10, 10)
    grey = Image.new("LA", (4, 4), (0, 0))
    assert images.decode(encoded(grey, "PNG")).getpixel((0, 0)) == (255, 255, 255)


def test_16_bits_are_scaled_not_cut(encoded) -> None:
    ramp = np.linspace(0, 65_535, 256).astype(np.uint16).reshape(16, 16)
    expected = np.rint(ramp / 257).astype(np.uint8)
    for format in ("PNG", "TIFF"):
        found = np.asarray(images.decode(encoded(Image.fromarray(ramp), format)))
        assert np.array_equal(found, np.stack([expected] * 3, axis=-1))
    for scale in (1 / 65_535, 1, 255 / 65_535):
        floats = Image.fromarray((ramp * scale).astype(np.float32))
        assert np.abs(np.asarray(images.decode(encoded(floats, "TIFF")), int)[..., 0] - expected).max() <= 1
    integers = Image.fromarray(ramp.astype(np.int32))
    assert np.array_equal(np.asarray(images.decode(encoded(integers, "TIFF")))[..., 0], expected)


def test_animations_give_their_first_frame(make_picture, encoded) -> None:
    frames = [make_picture(seed) for seed in range(3)]
    for format in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
        found, first = (np.asarray(image, int) for image in (images.decode(data), frames[0]))
        assert np.abs(found - first).mean() < 12


@pytest.mark.parametrize("size", [(1, 1), (1, 60_000), (60_000, 1), (3, 2)])
def test_extreme_shapes(size: tuple[int, int], encoded) -> None:
    data = encoded(Image.new("RGB", size, (10, 200, 30)), "PNG")
    assert images.decode(data).size == size
    jpeg = images.to_jpeg(data, 256, 90)
    assert (jpeg.width, jpeg.height) == size
    cropped = images.centre_crop_array(data, 224)
    assert cropped.shape == (224, 224, 3)
    assert np.abs(cropped.astype(int) - (10, 200, 30)).max() <= 1
    with pytest.raises(ImageError, match="unsupported"):
        images.to_jpeg(encoded(Image.new("L", (70_000, 1)), "PNG"), 256, 90)


def test_resizing_only_shrinks(make_picture) -> None:
    assert images.resize_short_side(make_picture(0, 640, 427), 256).size == (384, 256)
    assert images.resize_short_side(make_picture(0, 300, 900), 256).size == (256, 768)
    small = make_picture(0, 100, 200)
    assert images.resize_short_side(small, 256) is small
    assert images.resize_short_side(small, 0) is small


def test_big_jpegs_decode_at_a_fraction_and_look_the_same(make_picture, encoded) -> None:
    data = encoded(make_picture(5, 1600, 1200), quality=95)
    assert images.decode(data, short_side=256).size == (800, 600)
    fast = images.resize_short_side(images.decode(data, short_side=256), 256)
    slow = images.resize_short_side(images.decode(data), 256)
    assert fast.size == slow.size
    assert np.abs(np.asarray(fast, int) - np.asarray(slow, int)).mean() < 1


def test_small_jpegs_keep_their_bytes(make_picture, encoded) -> None:
    data = encoded(make_picture(6), quality=70)
    assert images.to_jpeg(data, 48, 90) == (data, 64, 48)
    assert images.to_jpeg(data, 40, 90).height == 40
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    for other in (
        encoded(make_picture(6), exif=exif),
        encoded(make_picture(6).convert("L")),
        encoded(make_picture(6), "PNG"),
    ):
        made = images.to_jpeg(other, 0, 90)
        assert made.data != other
        assert Image.open(io.BytesIO(made.data)).mode == "RGB"
    with pytest.raises(ImageError, match="truncated"):
        images.to_jpeg(data[:-200], 48, 90)


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (224, 224), (225, 500), (100, 80), (333, 1000)])
def test_centre_crop_is_clips(make_picture, size: tuple[int, int]) -> None:
    transforms = pytest.importorskip("torchvision.transforms.v2")
    picture = make_picture(7, *size)
    steps = [transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224)]
    expected = np.asarray(transforms.Compose(steps)(picture), int)
    difference = np.abs(images.centre_crop_array(picture, 224) - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.02
