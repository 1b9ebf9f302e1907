"""Odd files of phones, browsers, editors and instruments: right pixels, or an error that names what the file is."""

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sigrl_core.data import images
from sigrl_core.errors import ImageError
from tests.odd_images import END_MARKER, decoded, encoded, odd_images, tiff, with_declared_size

pytestmark = pytest.mark.unit

ATOL = 3
"""Largest difference of a pixel, of 255, from the reference."""


def drawn_image() -> Image.Image:
    y, x = np.mgrid[:120, :160]
    noise = np.random.default_rng(0).integers(0, 40, (120, 160))
    return Image.fromarray(np.stack([x + noise, 2 * y, 200 - x + noise], -1).clip(0, 255).astype(np.uint8))


IMAGE = drawn_image()
FILES = odd_images(IMAGE)


@pytest.mark.parametrize("name", FILES)
def test_right_pixels_or_the_true_reason(name: str) -> None:
    data, expected = FILES[name]
    if isinstance(expected, str):
        with pytest.raises(ImageError, match=f"^{re.escape(expected)}"):
            images.decode(data)
    else:
        pixels = np.asarray(images.decode(data))
        assert pixels.shape == expected.shape
        tolerance = 0 if name.startswith(("jpeg", "png")) else ATOL
        assert np.abs(pixels.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("jpeg")])
def test_reduced_jpegs_are_those_of_pillow(name: str) -> None:
    data, expected = FILES[name]
    if isinstance(expected, str):
        with pytest.raises(ImageError, match=f"^{re.escape(expected)}"):
            images.decode(data, short_side=30)
        return
    whole = data if data.endswith(END_MARKER) else data.removesuffix(b"\xff") + END_MARKER
    image = Image.open(io.BytesIO(whole))
    image.draft(image.mode, (60, 60))
    assert image.size == (80, 60)
    assert np.array_equal(images.decode(data, short_side=30), image.convert("RGB"))


@pytest.mark.parametrize("kind", ["progressive", "restarts"])
def test_a_jpeg_that_is_cut_between_scans_or_intervals_is_not_taken(kind: str) -> None:
    """libjpeg does not warn of a premature end there."""
    whole = FILES[f"jpeg {kind}"].data
    markers = [match.start() for match in re.finditer(rb"\xff[\xc4\xda\xd0-\xd7]", whole)][4:]
    assert len(markers) > 5
    for cut in (cut for marker in markers for cut in range(marker - 2, marker + 5)):
        for end in (b"", END_MARKER):
            with pytest.raises(ImageError, match="truncated"):
                images.decode(whole[:cut] + end)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_cut_jpeg_is_never_taken(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["baseline", "progressive", "restarts", "grey", "cmyk"]))
    whole = FILES[f"jpeg {kind}"].data
    cut = data.draw(st.integers(2, len(whole) - 3))
    closed = data.draw(st.booleans())
    with pytest.raises(ImageError) as caught:
        images.decode(whole[:cut] + END_MARKER * closed)
    assert caught.value.reason in ("truncated", "not_an_image")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([name for name, file in FILES.items() if not isinstance(file.expected, str)]), st.data())
def test_damage_is_an_image_or_an_error_with_a_reason(name: str, data: st.DataObject) -> None:
    damaged = bytearray(FILES[name].data)
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, min(len(damaged) - 1, 3000)))] = data.draw(st.integers(0, 255))
    try:
        outcome = images.decode(bytes(damaged), max_pixels=1_000_000).mode
    except ImageError as error:
        outcome = error.reason
    assert outcome in ("RGB", *images.REASONS)


def test_photographs_have_the_pixels_of_pillow(coco160: Path) -> None:
    for path in sorted(coco160.glob("*2017/*.jpg"))[:40]:
        data = path.read_bytes()
        for short_side in (0, 60):
            image = Image.open(path)
            if short_side:
                image.draft(image.mode, (2 * short_side, 2 * short_side))
            assert np.array_equal(images.decode(data, short_side=short_side), image.convert("RGB")), path


@pytest.mark.parametrize("factor", [0.2, 0.99, 1.0, 1.0001, 1.01, 1.5, 3.0, 300.0])
def test_the_scale_of_floats_has_no_jump(factor: float) -> None:
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None].repeat(64, 0)
    ours = np.asarray(images.decode(tiff(ramp * np.float32(factor))))[..., 0].astype(int)
    nearby = np.asarray(images.decode(tiff(ramp * np.float32(factor * 1.001))))[..., 0].astype(int)
    assert np.abs(ours - nearby).max() <= 1
    expected = ramp * 255 * min(factor, 1)
    assert np.abs(ours - expected).max() <= ATOL


def test_one_bright_pixel_or_nan_does_not_make_an_image_black() -> None:
    ramp = np.linspace(0, 1, 2000, dtype=np.float32)[None].repeat(64, 0)
    odd = ramp.copy()
    odd[0, :4] = (1e30, np.nan, np.inf, -np.inf)
    pixels = np.asarray(images.decode(tiff(odd)), int)[..., 0]
    assert list(pixels[0, :4]) == [255, 0, 255, 0]
    assert np.abs(pixels[1:] - ramp[1:] * 255).max() <= 1


def test_the_limit_of_pixels_names_its_own_number() -> None:
    for data in (encoded(Image.new("1", (1000, 300)), "PNG"), with_declared_size(FILES["heic"].data, 60_000, 60_000)):
        with pytest.raises(ImageError, match="at most 2000 pixels are decoded") as caught:
            images.decode(data, max_pixels=2000)
        assert caught.value.reason == "too_many_pixels"


@pytest.mark.parametrize("format", ["HEIF", "AVIF"])
def test_a_small_declared_size_does_not_buy_memory(tmp_path: Path, format: str) -> None:
    """A file of 36 million pixels that declares 64 x 64."""
    path = tmp_path / "lies"
    path.write_bytes(with_declared_size(encoded(Image.new("RGB", (6000, 6000)), format), 64, 64))
    code = (
        "import resource, sys; from sigrl_core.data import images; from sigrl_core.errors import ImageError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: print(images.decode(open(sys.argv[1], 'rb').read()).size)\n"
        "except ImageError as error: print(error.reason)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1000)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    outcome, megabytes = run.stdout.splitlines()
    assert outcome == ("truncated" if format == "HEIF" else "(64, 64)")
    assert int(megabytes) <= (50 if format == "HEIF" else 250)


def test_without_its_package_heic_is_unsupported() -> None:
    code = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from sigrl_core.data import images; from sigrl_core.errors import ImageError\n"
        "try: images.decode(sys.stdin.buffer.read())\n"
        "except ImageError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], input=FILES["heic"].data, check=True, capture_output=True)
    assert run.stdout.decode().startswith("unsupported: heic")


def test_upright_heic_in_a_shard() -> None:
    jpeg = images.to_jpeg(FILES["heic, turned"].data, 60, 90)
    assert (jpeg.width, jpeg.height) == (60, 80)
    assert decoded(jpeg.data).shape == (80, 60, 3)
