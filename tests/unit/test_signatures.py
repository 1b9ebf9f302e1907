"""The format of a file by its first bytes: files that Pillow wrote, other formats by their specifications."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sigrl_core.data.signatures import PICTURE_FORMATS, SIGNATURE_BYTES, format_of

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("written", "mode", "expected"),
    [
        ("JPEG", "RGB", "jpeg"),
        ("PNG", "RGBA", "png"),
        ("WEBP", "RGB", "webp"),
        ("GIF", "P", "gif"),
        ("BMP", "RGB", "bmp"),
        ("TIFF", "RGB", "tiff"),
        ("AVIF", "RGB", "avif"),
        ("JPEG2000", "RGB", "jpeg2000"),
        ("PPM", "RGB", "ppm"),
        ("PPM", "L", "pgm"),
        ("PPM", "1", "pbm"),
        ("ICO", "RGB", "ico"),
        ("PDF", "RGB", "pdf"),
        ("EPS", "RGB", "eps"),
    ],
)
def test_files_of_pillow(written: str, mode: str, expected: str) -> None:
    stream = io.BytesIO()
    Image.new(mode, (40, 30)).save(stream, written)
    assert format_of(stream.getvalue()) == expected
    assert format_of(stream.getvalue()[:64]) == expected


def ftyp(major: bytes, *compatible: bytes) -> bytes:
    body = b"ftyp" + major + bytes(4) + b"".join(compatible)
    return (len(body) + 4).to_bytes(4, "big") + body + b"\0\0\0\x10meta"


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (ftyp(b"heic", b"mif1", b"heic"), "heic"),
        (ftyp(b"mif1", b"mif1", b"heic"), "heic"),
        (ftyp(b"mif1", b"mif1", b"avif"), "avif"),
        (ftyp(b"mif1", b"mif1"), "heic"),
        (ftyp(b"crx ", b"crx ", b"isom"), "raw"),
        (ftyp(b"isom", b"mp41"), None),  # a film
        (b"\0\0\0\x0cJXL \r\n\x87\n", "jxl"),
        (b"\xff\x0a\xfa", "jxl"),
        (b"8BPS\0\1", "psd"),
        (b"II*\0\x10\0\0\0CR\2\0", "raw"),
        (b"II+\0\x08\0", "tiff"),
        (b"MM\0+\0\x08", "tiff"),
        (SVG, "svg"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- made\nby -->\n' + SVG, "svg"),
        (b'<?xml version="1.0"?><!DOCTYPE svg PUBLIC "a" "b.dtd" [<!ENTITY x "y">]>' + SVG, "svg"),
        (b'<?xml version="1.0"?><s:svg xmlns:s="http://www.w3.org/2000/svg"/>', "svg"),
        (('\ufeff<?xml version="1.0" encoding="UTF-16"?>' + SVG.decode()).encode("utf-16-le"), "svg"),
        (b"\n\n<!DOCTYPE html>\n<html>", "html"),
        (b'<?xml version="1.0"?><!-- 404 --><html xmlns="">', "html"),
        (b"<HTML><body>", "html"),
        (b"<html><body>" + SVG, "html"),
        (b"<annotation>" + SVG, None),
        (b'<?xml version="1.0"?><annotation/>', None),
        (b"BM is a text", None),
        (b"P5rs", None),
        (b"RIFF\0\0\0\0WAVE", None),
        (b"a text", None),
        (b"", None),
    ],
)
def test_other_formats(data: bytes, expected: str | None) -> None:
    assert format_of(data) == expected


@settings(deadline=None)
@given(st.binary(max_size=200) | st.sampled_from([b"<?", b"<!--", b"\xff\xfe<", b"P7\n", b"\0\0\0\0ftyp"]))
def test_any_bytes(data: bytes) -> None:
    name = format_of(data)
    assert name is None or name in PICTURE_FORMATS | {"ico", "pdf", "eps", "fits", "html"}
    assert format_of(data + bytes(SIGNATURE_BYTES)) == format_of((data + bytes(SIGNATURE_BYTES))[:SIGNATURE_BYTES])


@pytest.mark.parametrize("data", [b"<!--" * 2000, b"<?" * 4000, b"<!DOCTYPE svg [" * 400, b"<" + b"-" * 9000])
def test_long_prologues_take_no_time(data: bytes) -> None:
    """A pattern that tries many ways would not end within the limit of the whole run."""
    assert format_of(data) is None
