"""Odd but usual image files, made from one image: what phones, browsers, editors and scientific programs write."""

from __future__ import annotations

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
import tifffile
from PIL import Image

import sigrl_core.data.images  # noqa: F401  registers HEIC with Pillow

END_MARKER = b"\xff\xd9"


class OddImage(NamedTuple):
    """A file, and its pixels or the start of its error."""

    data: bytes
    expected: np.ndarray | str


def encoded(image: Image.Image, format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def decoded(data: bytes) -> np.ndarray:
    """Returns the pixels as Pillow reads them."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """Inserts chunks after the header."""
    return png[:33] + b"".join(chunks) + png[33:]


def raw_png(depth: int, colour_type: int, rows: list[bytes], width: int, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", content) + chunk(b"IEND", b"")
    )


def tiff(values: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


def odd_images(image: Image.Image) -> dict[str, OddImage]:
    """Returns the files by name; `image` is RGB and of at least 64 x 64 pixels."""
    return {**_jpegs(image), **_pngs(image), **_tiffs(image), **_iso_files(image), **_others()}


def _jpegs(image: Image.Image) -> dict[str, OddImage]:
    files = {}
    kinds = {
        "baseline": encoded(image, "JPEG"),
        "progressive": encoded(image, "JPEG", progressive=True),
        "restarts": encoded(image, "JPEG", restart_marker_rows=1),
        "grey": encoded(image.convert("L"), "JPEG"),
        "cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "4:1:1": encoded(image, "JPEG", subsampling="4:1:1"),
        "4:4:4": encoded(image, "JPEG", subsampling="4:4:4", quality=96),
    }
    for kind, data in kinds.items():
        pixels = decoded(data)
        name = f"jpeg {kind}"
        files |= {
            name: OddImage(data, pixels),
            f"{name}, no end marker": OddImage(data[:-2], pixels),
            f"{name}, half an end marker": OddImage(data[:-1], pixels),
            f"{name}, zeros after": OddImage(data + bytes(5000), pixels),
            f"{name}, bytes before the end marker": OddImage(data[:-2] + b"\0\x12" + END_MARKER, pixels),
            f"{name}, another one after": OddImage(data + kinds["baseline"], pixels),
        }
        for percent in (30, 60, 90, 95, 99):
            cut = data[: len(data) * percent // 100]
            files[f"{name}, cut at {percent} %"] = OddImage(cut, "truncated")
            files[f"{name}, cut at {percent} % and closed"] = OddImage(cut + END_MARKER, "truncated")
        files[f"{name}, last byte of the scan lost"] = OddImage(data[:-3] + END_MARKER, "truncated")
    frame = kinds["baseline"].index(b"\xff\xc0")
    twelve_bits = kinds["baseline"][: frame + 4] + b"\x0c" + kinds["baseline"][frame + 5 :]
    files["jpeg of 12 bits"] = OddImage(twelve_bits, "unsupported: jpeg: 12 bits")
    return files


def _pngs(image: Image.Image) -> dict[str, OddImage]:
    png, pixels = encoded(image, "PNG"), np.asarray(image)
    text = zlib.compress(b"a" * 2_000_000)
    damaged = {
        "tEXt": chunk(b"tEXt", b"Comment\0hello")[:-1] + b"\0",
        "gAMA": chunk(b"gAMA", struct.pack(">I", 45_455))[:-1] + b"\0",
    }
    files = {
        "png, zTXt of 2 MB": with_chunks(png, chunk(b"zTXt", b"parameters\0\0" + text)),
        "png, iTXt of 2 MB": with_chunks(png, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + text)),
        "png, tEXt of 2 MB": with_chunks(png, chunk(b"tEXt", b"workflow\0" + b"a" * 2_000_000)),
        "png, 70 texts of 1 MB": with_chunks(
            png, *(chunk(b"zTXt", b"k%d\0\0" % i + zlib.compress(b"a" * 1_040_000)) for i in range(70))
        ),
        "png, profile of 1.2 MB": with_chunks(
            png, chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(range(100)) * 12_000))
        ),
        "png, damaged profile": with_chunks(png, chunk(b"iCCP", b"p\0\0notzlib")),
        "png, short cHRM": with_chunks(png, chunk(b"cHRM", b"")),
        **{f"png, bad checksum of {name}": with_chunks(png, bad) for name, bad in damaged.items()},
        **{
            f"png, bad checksum of {name} after the pixels": png[:-12] + bad + png[-12:]
            for name, bad in damaged.items()
        },
        "png, no IEND": png[:-12],
        "png, garbage after": png + b"garbage" * 100,
    }
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = with_chunks(encoded(image, "PNG", exif=exif), damaged["tEXt"])
    # the left half transparent, so white
    half = np.zeros((64, 64), bool)
    half[:, :32] = True
    grey16 = np.where(half, 40_000, 5 * 257).astype(">u2")
    colours = {"high": (0x1234, 0x1234, 0x1234), "low": (0x1235, 0x1234, 0x1234)}
    rgb16 = b"".join(
        struct.pack(">HHH", *colours["high"]) * 32 + struct.pack(">HHH", *colours["low"]) * 32 for _ in range(1)
    )

    def on_white(level: int) -> np.ndarray:
        return np.where(half[..., None], 255, level).astype(np.uint8).repeat(3, 2)

    transparent = {
        "16-bit grey": (16, 0, grey16[0].tobytes(), struct.pack(">H", 40_000), 5),
        "4-bit grey": (4, 0, bytes([0x11] * 16 + [0x99] * 16), b"\0\x01", 0x99),
        "2-bit grey": (2, 0, bytes([0x55] * 8 + [0xAA] * 8), b"\0\x01", 0xAA),
        "1-bit grey": (1, 0, bytes([0] * 4 + [255] * 4), b"\0\0", 255),
        "1-bit grey, white": (1, 0, bytes([255] * 4 + [0] * 4), b"\0\1", 0),
        "16-bit RGB": (16, 2, rgb16, struct.pack(">HHH", *colours["high"]), 0x12),
    }
    return (
        {name: OddImage(data, pixels) for name, data in files.items()}
        | {"png, bad text and an orientation": OddImage(turned, np.rot90(pixels, 2))}
        | {"png, cut": OddImage(png[: len(png) // 2], "truncated")}
        | {"png, bad checksum of pixels": OddImage(png[:-20] + bytes([png[-20] ^ 1]) + png[-19:], "truncated")}
        | {
            f"png, transparent {name}": OddImage(
                raw_png(depth, kind, [row] * 64, 64, chunk(b"tRNS", colour)), on_white(level)
            )
            for name, (depth, kind, row, colour, level) in transparent.items()
        }
    )


def _tiffs(image: Image.Image) -> dict[str, OddImage]:
    rgb = np.asarray(image)
    grey = np.asarray(image.convert("L"))
    stretched = grey.copy()
    stretched[0, :2], stretched[1, :] = (0, 255), 255  # more than one pixel in a thousand is white
    unstretched = grey[..., None].repeat(3, 2)
    of_grey = stretched[..., None].repeat(3, 2)
    rgb16, unit = rgb.astype(np.uint16) * 257, stretched.astype(np.float32) / 255
    planes = np.moveaxis(rgb16, -1, 0)
    narrow_map = np.arange(256, dtype=np.uint16)[None].repeat(3, 0)

    def palette(colours: np.ndarray) -> bytes:
        return tiff(grey, photometric="palette", colormap=colours, compression="lzw")

    good: dict[str, tuple[bytes, np.ndarray]] = {
        "8-bit": (tiff(rgb, photometric="rgb"), rgb),
        "BigTIFF": (tiff(rgb, photometric="rgb", bigtiff=True), rgb),
        "16-bit": (tiff(rgb16, photometric="rgb"), rgb),
        "16-bit, separate planes, LZW": (
            tiff(planes, photometric="rgb", planarconfig="separate", compression="lzw"),
            rgb,
        ),
        "palette, LZW": (palette(narrow_map * 257), unstretched),
        "palette of 8 bits, LZW": (palette(narrow_map), unstretched),
        "float of 0 to 1": (tiff(unit), of_grey),
        "float of 0 to 1.02": (tiff(unit * np.float32(1.02)), of_grey),
        "float of 0 to 1.6": (tiff(unit * np.float32(1.6)), of_grey),
        "float of 0 to 255": (tiff(unit * 255), of_grey),
        "signed 16-bit": (tiff(stretched.astype(np.int16) * 128), of_grey),
        "signed 16-bit, big-endian": (tiff(stretched.astype(np.int16) * 128, byteorder=">"), of_grey),
        "signed 32-bit of 0 to 4,080": (tiff(stretched.astype(np.int32) * 16), of_grey),
        "unsigned 32-bit": (tiff(stretched.astype(np.uint32) * 16_843_009), of_grey),
    }  # fmt: skip
    raw_tags = [(50706, 1, 4, b"\1\4\0\0", True)]
    refused = {
        "16-bit, separate planes": tiff(planes, photometric="rgb", planarconfig="separate"),
        "16-bit, white is zero": tiff(grey.astype(np.uint16) * 257, photometric="miniswhite"),
        "signed 8-bit": tiff((grey // 2).astype(np.int8)),
        "float RGB": tiff(rgb.astype(np.float32) / 255, photometric="rgb"),
        "half float": tiff(unit.astype(np.float16)),
        "double": tiff(unit.astype(np.float64)),
        "signed 16-bit RGB": tiff(rgb.astype(np.int16), photometric="rgb"),
        "float, big-endian, LZW": tiff(unit, byteorder=">", compression="lzw"),
        "big-endian BigTIFF": tiff(rgb, photometric="rgb", byteorder=">", bigtiff=True),
    }
    preview = {"subfiletype": 1, "subifds": 1, "photometric": "rgb", "metadata": None}
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:  # as Nikon's NEF: a preview above the pixels of the sensor
        writer.write(rgb[:32, :32], extratags=[(271, 2, 0, "NIKON CORPORATION", True)], **preview)
        writer.write(grey.astype(np.uint16), photometric="cfa", subfiletype=0, metadata=None)
    whole = tiff(rgb.astype(np.float32), photometric="rgb")
    return (
        {f"tiff, {name}": OddImage(data, pixels) for name, (data, pixels) in good.items()}
        | {f"tiff, {name}": OddImage(data, "unsupported: tiff") for name, data in refused.items()}
        | {
            "tiff, DNG": OddImage(tiff(rgb, photometric="rgb", extratags=raw_tags), "unsupported: raw: DNG"),
            "tiff, CR2": OddImage(_cr2_with_preview(), "unsupported: raw"),
            "tiff, NEF": OddImage(stream.getvalue(), "unsupported: raw: camera file of NIKON"),
            "tiff, cut": OddImage(good["8-bit"][0][: rgb.nbytes // 2], "truncated"),
            "tiff, float RGB, cut": OddImage(whole[: rgb.nbytes * 2], "truncated"),
        }
    )


def _cr2_with_preview() -> bytes:
    """Returns a TIFF of 2 x 2 pixels with the first bytes of Canon's RAW files."""
    tags = {256: 2, 257: 2, 258: 8, 259: 1, 262: 1, 273: 16 + 2 + 9 * 12 + 4, 277: 1, 278: 2, 279: 4}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 16) + b"CR\2\0" + bytes(4) + struct.pack("<H", 9) + entries + bytes(8)


def _iso_files(image: Image.Image) -> dict[str, OddImage]:
    rgba = image.copy()
    rgba.putalpha(Image.linear_gradient("L").resize(image.size))
    files = {}
    for name, format in (("heic", "HEIF"), ("avif", "AVIF")):
        data, transparent = encoded(image, format), encoded(rgba, format)
        turned = encoded(image, format, exif=_exif(6))
        loaded = Image.open(io.BytesIO(transparent))
        assert loaded.mode == "RGBA"
        on_white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), loaded).convert("RGB")
        files |= {
            name: OddImage(data, decoded(data)),
            f"{name}, transparent": OddImage(transparent, np.asarray(on_white)),
            f"{name}, turned": OddImage(turned, np.rot90(decoded(data), -1)),
            f"{name}, cut": OddImage(data[: len(data) // 2], "truncated"),
            f"{name}, declared too large": OddImage(with_declared_size(data, 20_000, 20_000), "too_many_pixels"),
        }
    width, height = image.size
    aperture = (width // 2, 1, height // 2, 1, width // 8, 1, 0, 1)
    left, top = width // 4 + width // 8, height // 4
    shown = decoded(encoded(image, "AVIF"))[top : top + height // 2, left : left + width // 2]
    files["avif, cropped"] = OddImage(with_aperture(encoded(image, "AVIF"), aperture), shown)
    return files


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def with_declared_size(data: bytes, width: int, height: int) -> bytes:
    """Changes the size that the header of an AVIF or HEIC declares."""
    start = data.index(b"ispe") + 8
    return data[:start] + struct.pack(">II", width, height) + data[start + 8 :]


def with_aperture(data: bytes, aperture: tuple[int, ...]) -> bytes:
    """Adds a property `clap` to the only item of an AVIF that libavif wrote."""
    box = struct.pack(">I4s", 40, b"clap") + struct.pack(">8I", *aperture)
    edited = bytearray(data)
    ipco, ipma = data.index(b"ipco"), data.index(b"ipma")
    number, position = 0, ipco + 4
    while position < ipma - 4:
        number, position = number + 1, position + int.from_bytes(data[position : position + 4], "big")
    count_at = ipma + 4 + 4 + 4 + 2  # version and flags, number of items, item
    edited[count_at] += 1
    edited[count_at + 1 + data[count_at] : count_at + 1 + data[count_at]] = bytes([0x80 | number + 1])  # essential
    edited[ipma - 4 : ipma - 4] = box
    for kind, added in ((b"ipma", 1), (b"ipco", 40), (b"iprp", 41), (b"meta", 41)):
        start = edited.index(kind) - 4
        edited[start : start + 4] = (int.from_bytes(edited[start : start + 4], "big") + added).to_bytes(4, "big")
    pixels = data.index(b"mdat") + 4
    at = edited.index(pixels.to_bytes(4, "big"), edited.index(b"iloc"))
    edited[at : at + 4] = (pixels + 41).to_bytes(4, "big")
    return bytes(edited)


def _others() -> dict[str, OddImage]:
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    starts = {
        "svg": svg,
        "svg after a prologue": b'<?xml version="1.0"?>' + svg,
        "jxl": b"\xff\x0a" + bytes(50),
        "jxl in a container": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50),
        "psd": b"8BPS" + bytes(50),
        "pdf": b"%PDF-1.7\n",
        "raw of Canon": b"II*\0\x10\0\0\0CR\2\0" + bytes(50),
        "raw of Fujifilm": b"FUJIFILMCCD-RAW 0201" + bytes(50),
        "raw of Olympus": b"IIRO\x08\0\0\0" + bytes(50),
    }
    files = {name: OddImage(data, f"unsupported: {name.split()[0]}") for name, data in starts.items()}
    return files | {
        "html": OddImage(b"<!DOCTYPE html><html>not found</html>", "not_an_image: html"),
        "text": OddImage(b"not found", "not_an_image: starts with b'not found'"),
        "empty": OddImage(b"", "empty"),
    }
