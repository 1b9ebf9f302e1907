"""Names the format of a file by its first bytes; a file's ending is not used. Standard library only."""

from __future__ import annotations

import re

SIGNATURE_BYTES = 4096
"""Number of first bytes that `format_of` examines; an SVG may begin with a long prologue."""

PICTURE_FORMATS = frozenset(
    (
        *("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif", "heic", "jpeg2000", "jxl"),
        *("ppm", "pgm", "pbm", "pam", "svg", "psd", "raw"),
    )
)
"""Formats of single pictures, decoded here or not. `ico`, `pdf`, `eps`, `fits` and `html` are none of them."""

_PREFIXES = {
    b"\xff\xd8\xff": "jpeg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"II*\0\x10\0\0\0CR": "raw",  # Canon CR2, before TIFF
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",  # BigTIFF
    b"MM\0+": "tiff",
    b"IIRO": "raw",  # Olympus
    b"IIRS": "raw",
    b"IIU\0": "raw",  # Panasonic
    b"FUJIFILMCCD-RAW": "raw",
    b"FOVb": "raw",  # Sigma
    b"\0MRM": "raw",  # Minolta
    b"\0\0\0\x0cjP  \r\n\x87\n": "jpeg2000",
    b"\xff\x4f\xff\x51": "jpeg2000",  # a bare codestream
    b"\0\0\0\x0cJXL \r\n\x87\n": "jxl",
    b"\xff\x0a": "jxl",  # a bare codestream
    b"8BPS": "psd",
    b"\0\0\1\0": "ico",
    b"%PDF": "pdf",
    b"%!PS": "eps",
    b"\xc5\xd0\xd3\xc6": "eps",  # with a preview
    b"SIMPLE  =": "fits",
}
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "avif"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "heic"),
    b"crx ": "raw",  # Canon CR3
}
"""Brands of an ISO file (its first box is `ftyp`). The brands mif1 and msf1 are of AVIF as well as of HEIC."""
_PNM = re.compile(rb"P([1-6])(?:\s|#[^\n]*\n)+\d|P(7)\n")
_PNM_FORMATS = {b"1": "pbm", b"4": "pbm", b"2": "pgm", b"5": "pgm", b"3": "ppm", b"6": "ppm", b"7": "pam"}
_BMP_HEADER_SIZES = (12, 16, 40, 52, 56, 64, 108, 124)
_HTML = re.compile(rb"<!doctype\s+html|<(?:html|head|body|title|script)[\s>]", re.IGNORECASE)
_MARKUP = re.compile(rb"\s*(?:<\?.*?\?>|<!--.*?-->|<!DOCTYPE\s+svg[^\[>]*(?:\[.*?\]\s*)?>)", re.IGNORECASE | re.DOTALL)
_SVG = re.compile(rb"<(?:[\w.-]+:)?svg[\s>/]", re.IGNORECASE)
_BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}


def format_of(first_bytes: bytes) -> str | None:
    """Returns the format that the first bytes of a file have; None for an unknown one, also for no bytes.

    One of `PICTURE_FORMATS`, `ico`, `pdf`, `eps`, `fits`, or `html`. A camera RAW file with the first bytes of a TIFF
    (NEF, ARW, DNG) is `tiff`. That the format is known does not mean that the file is complete.

    Args:
        first_bytes: the first `SIGNATURE_BYTES` bytes, or the whole file; others are not examined.
    """
    data = first_bytes[:SIGNATURE_BYTES]
    for prefix, name in _PREFIXES.items():
        if data.startswith(prefix):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        return _format_of_iso(data)
    if (pnm := _PNM.match(data)) is not None:
        return _PNM_FORMATS[pnm[1] or pnm[2]]
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADER_SIZES:
        return "bmp"
    return _format_of_text(data)


def _format_of_iso(data: bytes) -> str | None:
    """Reads the brands of the box `ftyp`: the major brand first, then the compatible ones."""
    end = min(int.from_bytes(data[:4], "big"), len(data))
    brands = [data[8:12], *(data[start : start + 4] for start in range(16, end - 3, 4))]
    formats = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
    if formats:
        return formats[0]
    return "heic" if {b"mif1", b"msf1"} & set(brands) else None  # HEIF with another codec


def _format_of_text(data: bytes) -> str | None:
    text = data
    if (encoding := _BYTE_ORDER_MARKS.get(data[:2])) is not None:
        text = data[2:].decode(encoding, errors="replace").encode(errors="replace")
    text = text.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text.startswith(b"<"):
        return None
    if _HTML.match(text):
        return "html"
    while (markup := _MARKUP.match(text)) is not None:
        text = text[markup.end() :].lstrip()
    return "svg" if _SVG.match(text) else "html" if _HTML.match(text) else None
