"""Untrusted images: each decodes to RGB or raises an ImageError with a reason, without warnings or other errors."""

import io
import resource
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from sigrl_core.data import images
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


def test_reasons(make_image, encoded) -> None:
    jpeg = encoded(make_image(0))
    assert reason(b"") == "empty"
    assert reason(b"just text in a .jpg") == "not_an_image"
    assert reason(bytes(500)) == "not_an_image"
    assert reason(b"%PDF-1.7 ...") == "unsupported"
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n") == "unsupported"
    assert reason(b"<svg xmlns='http://www.w3.org/2000/svg'/>") == "unsupported"
    assert reason(jpeg, max_pixels=64 * 48 - 1) == "too_many_pixels"
    assert images.decode(jpeg, max_pixels=64 * 48).size == (64, 48)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_every_truncation_is_detected_or_harmless(make_image, encoded, format: str) -> None:
    data = encoded(make_image(1), format)
    assert reason(data[: len(data) // 2]) == "truncated"
    reasons = set()
    for length in range(1, len(data), max(1, len(data) // 60)):
        try:
            images.decode(data[:length])
        except ImageError as error:
            reasons.add(error.reason)
    assert reasons <= {"truncated", "not_an_image"}


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


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
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
def test_exif_orientation_is_applied(make_image, encoded, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(make_image(2), quality=95, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(images.decode(data), expected)
    jpeg = images.to_jpeg(data, 0, 90)
    assert not Image.open(io.BytesIO(jpeg.data)).getexif()
    assert (jpeg.width, jpeg.height) == expected.size


def test_damaged_exif_around_a_good_image(make_image, encoded) -> None:
    assert images.decode(encoded(make_image(3), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")).size == (64, 48)


def test_colours_of_every_mode(make_image, encoded) -> None:
    image = make_image(4)
    for mode, format in [("CMYK", "JPEG"), ("L", "JPEG"), ("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("YCbCr", "TIFF")]:
        found = images.decode(encoded(image.convert(mode), format))
        assert found.mode == "RGB"
        reference = image.convert(mode).convert("RGB")
        assert np.abs(np.asarray(found, int) - np.asarray(reference, int)).mean() < 6


def test_transparent_pixels_become_white(encoded) -> None:
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


def test_16_bits_are_scaled_not_clipped(encoded) -> None:
    ramp = np.linspace(0, 65_535, 256).astype(np.uint16).reshape(16, 16)
    expected = np.rint(ramp / 257).astype(np.uint8)
    for format in ("PNG", "TIFF"):
        found = np.asarray(images.decode(encoded(Image.fromarray(ramp), format)))
        assert np.array_equal(found, np.stack([expected] * 3, axis=-1))
    for scale in (1 / 65_535, 1, 255 / 65_535):
        floats = Image.fromarray((ramp * scale).astype(np.float32))
        assert np.abs(np.asarray(images.decode(encoded(floats, "TIFF")), int)[..., 0] - expected).max() <= 1
    integers = Image.fromarray(ramp.astype(np.int32))
    assert np.abs(np.asarray(images.decode(encoded(integers, "TIFF")), int)[..., 0] - expected).max() <= 1


def test_animations_decode_to_their_first_frame(make_image, encoded) -> None:
    frames = [make_image(seed) for seed in range(3)]
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


def test_resizing_only_shrinks(make_image) -> None:
    assert images.resize_short_side(make_image(0, 640, 427), 256).size == (383, 256)
    assert images.resize_short_side(make_image(0, 640, 427), 256, "nearest").size == (384, 256)
    assert images.resize_short_side(make_image(0, 300, 900), 256).size == (256, 768)
    small = make_image(0, 100, 200)
    assert images.resize_short_side(small, 256) is small
    assert images.resize_short_side(small, 0) is small


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 400), st.integers(2, 400), st.integers(1, 200), st.integers(0, 2**32))
def test_resizing_equals_pillow(width: int, height: int, size: int, seed: int) -> None:
    noise = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))
    found = images.resize_short_side(noise, size)
    across = noise.resize((found.width, height), Image.Resampling.BICUBIC)  # PIL itself goes down first if it is tall
    expected = across.resize(found.size, Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).max() <= 3
    assert images.resize_short_side(noise, size).tobytes() == found.tobytes()


def test_big_jpegs_decode_at_a_fraction_and_look_the_same(make_image, encoded) -> None:
    data = encoded(make_image(5, 1600, 1200), quality=95)
    assert images.decode(data, short_side=256).size == (800, 600)
    fast = images.resize_short_side(images.decode(data, short_side=256), 256)
    slow = images.resize_short_side(images.decode(data), 256)
    assert fast.size == slow.size
    assert np.abs(np.asarray(fast, int) - np.asarray(slow, int)).mean() < 1


def test_small_jpegs_keep_their_bytes(make_image, encoded) -> None:
    data = encoded(make_image(6), quality=70)
    assert images.to_jpeg(data, 48, 90) == (data, 64, 48, None)
    assert images.to_jpeg(data, 40, 90).height == 40
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    for other in (
        encoded(make_image(6), exif=exif),
        encoded(make_image(6).convert("L")),
        encoded(make_image(6), "PNG"),
    ):
        made = images.to_jpeg(other, 0, 90)
        assert made.data != other
        assert Image.open(io.BytesIO(made.data)).mode == "RGB"
    with pytest.raises(ImageError, match="truncated"):
        images.to_jpeg(data[:-200], 48, 90)


def camera_exif(orientation: int | None) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif.get_ifd(0x8825)[1] = "N"  # GPSInfo: GPSLatitudeRef
    if orientation is not None:
        exif[0x0112] = orientation
    return exif


def exif_of(jpeg: bytes) -> Image.Exif:
    return Image.open(io.BytesIO(jpeg)).getexif()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_exif_is_kept_on_request(make_image, encoded, format: str, orientation: int | None) -> None:
    data = encoded(make_image(8), format, exif=camera_exif(orientation))
    made = images.to_jpeg(data, 40, 90, keep_exif=True)
    kept = exif_of(made.data)
    assert (kept[0x010F], kept.get_ifd(0x8825)[1], kept[0x0112]) == ("a camera", "N", 1)
    dropped = images.to_jpeg(data, 40, 90)
    assert not exif_of(dropped.data)
    assert np.array_equal(images.decode(made.data), images.decode(dropped.data))


def test_small_upright_jpegs_keep_their_bytes_and_exif(make_image, encoded) -> None:
    for orientation in (None, 1):
        data = encoded(make_image(8), exif=camera_exif(orientation))
        assert images.to_jpeg(data, 0, 90, keep_exif=True).data == data
        assert images.to_jpeg(data, 0, 90).data != data
    turned = images.to_jpeg(encoded(make_image(8), exif=camera_exif(6)), 0, 90, keep_exif=True)
    assert (turned.width, turned.height) == (48, 64)
    assert exif_of(turned.data)[0x0112] == 1
    with_xmp = encoded(make_image(8), exif=camera_exif(1), xmp=b"<x:xmpmeta/>")
    made = images.to_jpeg(with_xmp, 0, 90, keep_exif=True).data
    assert b"xmpmeta" not in made
    assert exif_of(made)[0x010F] == "a camera"


def test_exif_that_cannot_be_kept_is_dropped(make_image, encoded) -> None:
    too_big = camera_exif(6)
    too_big[0x927C] = bytes(70_000)  # MakerNote
    for data in (encoded(make_image(3), "PNG", exif=too_big), encoded(make_image(3), "TIFF")):
        assert not exif_of(images.to_jpeg(data, 0, 90, keep_exif=True).data)
    damaged = encoded(make_image(3), "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    assert dict(exif_of(images.to_jpeg(damaged, 0, 90, keep_exif=True).data)) == {0x0112: 1}


def test_orientation_survives_damage_elsewhere_in_exif(make_image, encoded) -> None:
    tag_of_unknown_kind = struct.pack("<HHII", 0x010F, 99, 1, 0)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHII", 2, 0x0112, 3, 1, 6) + tag_of_unknown_kind + bytes(4)
    assert images.decode(encoded(make_image(3), exif=exif)).size == (48, 64)


def test_comments_are_dropped_as_metadata(make_image, encoded) -> None:
    data = encoded(make_image(8), comment=b"at home", exif=camera_exif(1))
    assert b"at home" in data
    assert b"at home" not in images.to_jpeg(data, 0, 90).data


def test_perceptual_hash_depends_on_the_visible_content(make_image, encoded) -> None:
    def hash_of(data: bytes) -> int:
        found = images.to_jpeg(data, 100, 90, perceptual_hash=True).perceptual_hash
        assert found is not None
        assert 0 <= found < 2**64
        return found

    image = make_image(9, 320, 240)
    first = hash_of(encoded(image, "PNG"))
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    for copy in (
        encoded(image, quality=60),
        encoded(image.resize((200, 150)), "WEBP"),
        encoded(turned, exif=exif),
    ):
        assert (first ^ hash_of(copy)).bit_count() <= 6
    assert (first ^ hash_of(encoded(make_image(10, 320, 240)))).bit_count() > 16
    assert images.to_jpeg(encoded(image), 100, 90).perceptual_hash is None


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (224, 224), (225, 500), (100, 80), (333, 1000)])
def test_centre_crop_equals_clip(make_image, size: tuple[int, int]) -> None:
    transforms = pytest.importorskip("torchvision.transforms.v2")
    image = make_image(7, *size)
    steps = [transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224)]
    expected = np.asarray(transforms.Compose(steps)(image), int)
    difference = np.abs(images.centre_crop_array(image, 224) - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.02
