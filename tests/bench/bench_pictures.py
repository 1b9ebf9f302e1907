"""Decodes every file below folders with ours and with other decoders, and compares pixels and verdicts.

    python tests/bench/bench_pictures.py [FOLDER ...] [--quick] [--no-cost]

Without FOLDER: the odd files of tests/odd_images.py, the photographs of coco160, and the files of make_pictures.py,
where they are present. The reference is imagecodecs (its own builds of libjpeg-turbo, libpng, libwebp, libavif, giflib,
OpenJPEG) and, for TIFF, tifffile. Neither of them decodes HEIC.

A reference decoder takes JPEG files that are cut, too. So each JPEG that ours takes is also cut and closed with an end
marker (it must be `truncated`), cut without one, and deprived of its end marker (it must have the same pixels).

Then the CPU time per JPEG is measured, in turns with what version 0.1.0 did (Pillow's own decoder).

Exits with 1 for an image that is taken and differs by more than 3 of 255 from the reference, is taken although it is
cut, or is refused although the reference decodes it whole, unless `EXCEPTIONS` has the reason. The last line is JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sigrl_core.data import images, png
from sigrl_core.data.signatures import SIGNATURE_BYTES, format_of
from sigrl_core.errors import ImageError
from tests.conftest import COCO160
from tests.odd_images import END_MARKER, odd_images

MAKE_PICTURES = COCO160.parents[1] / "cases" / "make_pictures.py"
MAX_DIFFERENCE = 3
QUICK_FILES, COST_FILES, COST_ROUNDS = 150, 40, 15
SHORT_SIDES = (0, 256)
EXCEPTIONS = {
    r"unsupported: tiff": "a TIFF that Pillow decodes incorrectly or not at all; the message names its kind",
    r"unsupported: raw": "camera RAW; the reference decodes a preview or the pixels of the sensor",
    r"unsupported: jpeg: ": "lossless or 12-bit JPEG",
    r"too_many_pixels": "above --max-pixels",
}
"""Errors of ours that are intended where the reference decodes the file, with the reason."""


def default_files() -> Iterator[tuple[str, bytes]]:
    y, x = np.mgrid[:240, :320]
    drawn = Image.fromarray(np.stack([x % 256, y, (x * y) % 256], -1).astype(np.uint8))
    yield from ((f"tests: {name}", file.data) for name, file in odd_images(drawn).items())
    yield from files_below(COCO160)
    if MAKE_PICTURES.exists():
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, MAKE_PICTURES, folder], check=True, capture_output=True)
            yield from files_below(Path(folder))


def files_below(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix.lower() not in (".json", ".xml", ".txt", ".csv"):
            yield str(path), path.read_bytes()


def ours(data: bytes) -> np.ndarray | ImageError:
    try:
        return np.asarray(images.decode(data))
    except ImageError as error:
        return error


def reference(data: bytes) -> np.ndarray | None:
    """Returns upright RGB pixels on white; None if the reference has no decoder or does not decode the file."""
    name = format_of(data[:SIGNATURE_BYTES])
    try:
        if name == "tiff":
            return _tiff(data)
        decode = {
            "jpeg": imagecodecs.jpeg8_decode,
            "png": imagecodecs.png_decode,
            "webp": imagecodecs.webp_decode,
            "gif": imagecodecs.gif_decode,
            "bmp": imagecodecs.bmp_decode,
            "avif": imagecodecs.avif_decode,
            "jpeg2000": imagecodecs.jpeg2k_decode,
        }.get(name or "")
        pixels = None if decode is None else np.asarray(decode(data))
    except Exception:  # each decoder has its own errors
        return None
    if pixels is None or (name == "jpeg" and not _is_whole(data, pixels)):
        return None
    if name in ("gif", "avif") and pixels.ndim == 4:
        pixels = pixels[0]
    if name == "jpeg" and pixels.ndim == 3 and pixels.shape[2] == 4:
        return _upright(np.asarray(Image.fromarray(255 - pixels, "CMYK").convert("RGB")), data)
    return _upright(_rgb_on_white(pixels), data)


def _is_whole(data: bytes, pixels: np.ndarray) -> bool:
    """Returns whether the scan of a JPEG is complete: then bytes that are put behind it do not change the pixels."""
    end = data.rfind(END_MARKER)
    scan = (data if end < 0 else data[:end]).removesuffix(b"\xff")
    others = (imagecodecs.jpeg8_decode(scan + filling * 500 + END_MARKER) for filling in (b"\x55", b"\xaa", b"\x00"))
    return all(np.array_equal(other, pixels) for other in others)


def _tiff(data: bytes) -> np.ndarray | None:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        values, photometric = page.asarray(), page.photometric.name
        if page.planarconfig == 2 and values.ndim == 3:
            values = np.moveaxis(values, 0, -1)
        if photometric == "PALETTE":
            colours = page.colormap if page.colormap.max() < 256 else page.colormap // 256
            return _upright(np.moveaxis(colours[:, values], 0, -1).astype(np.uint8), data)
        if photometric not in ("MINISBLACK", "MINISWHITE", "RGB") or values.dtype.kind != "u":
            return None  # scaled by a rule of ours
        if values.dtype == np.uint32:
            return None
        if photometric == "MINISWHITE":
            values = np.iinfo(values.dtype).max - values
        return _upright(_rgb_on_white(values), data)


def _rgb_on_white(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    values = pixels / (257 if pixels.dtype == np.uint16 else 1)
    values = values[..., None] if values.ndim == 2 else values
    if values.shape[2] in (2, 4):
        alpha = values[..., -1:] / 255
        values = values[..., :-1] * alpha + 255 * (1 - alpha)
    return np.rint(values.repeat(3, 2) if values.shape[2] == 1 else values).astype(np.uint8)


def _upright(pixels: np.ndarray, data: bytes) -> np.ndarray:
    try:
        kept = png.without_metadata(data) if data.startswith(b"\x89PNG") else data
        orientation = Image.open(io.BytesIO(kept)).getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF
        orientation = 1
    turns = {3: (2, False), 6: (3, False), 8: (1, False), 2: (0, True), 4: (2, True), 5: (3, True), 7: (1, True)}
    if format_of(data[:SIGNATURE_BYTES]) == "tiff" or orientation not in turns:
        return pixels
    quarter_turns, mirrored = turns[orientation]
    return np.rot90(pixels[:, ::-1] if mirrored else pixels, quarter_turns)


class Comparison:
    """Counts of verdicts, and the names of the files that are wrong."""

    def __init__(self) -> None:
        self.verdicts: Counter[str] = Counter()
        self.exceptions: Counter[str] = Counter()
        self.wrong: dict[str, list[str]] = {"wrong_pixels": [], "taken_cut": [], "lost": []}

    def compare(self, name: str, data: bytes) -> None:
        found, expected = ours(data), reference(data)
        format = format_of(data[:SIGNATURE_BYTES])
        if isinstance(found, ImageError):
            self.verdicts[f"refused, {format}: {found.reason}"] += 1
            if expected is not None and not self._is_exception(str(found)):
                self._report("lost", f"{name}: {found}")
            return
        self.verdicts[f"taken, {format}" + ("" if expected is not None else ", no reference")] += 1
        if expected is not None and expected.shape == found.shape:
            if (difference := int(np.abs(found.astype(int) - expected).max())) > MAX_DIFFERENCE:
                self._report("wrong_pixels", f"{name}: differs by {difference}")
        elif expected is not None and format == "avif" and b"clap" in data:
            self.exceptions.update(["the reference does not apply the crop of an AVIF"])
        elif expected is not None:
            self._report("wrong_pixels", f"{name}: {found.shape}, reference {expected.shape}")
        if format == "jpeg":
            self._compare_cut_jpegs(name, data, found)

    def _compare_cut_jpegs(self, name: str, data: bytes, pixels: np.ndarray) -> None:
        whole = data[: data.rindex(END_MARKER)] if END_MARKER in data else data.removesuffix(b"\xff")
        if END_MARKER in whole:  # more than one image, or a thumbnail
            return
        opened = ours(whole)
        self.verdicts["JPEG without an end marker"] += 1
        if isinstance(opened, ImageError) or not np.array_equal(opened, pixels):
            self._report("lost", f"{name}, without its end marker")
        start = whole.rindex(b"\xff\xda")
        for closing in (b"", END_MARKER):
            cut = random.Random(len(data)).randrange(start + 20, max(len(whole) - 2, start + 21))
            self.verdicts["JPEG, cut" + " and closed" * bool(closing)] += 1
            if not isinstance(ours(whole[:cut] + closing), ImageError):
                self._report("taken_cut", f"{name}, cut at {cut} of {len(whole)}")

    def _is_exception(self, error: str) -> bool:
        why = next((why for pattern, why in EXCEPTIONS.items() if re.match(pattern, error)), None)
        self.exceptions.update([why] if why else [])
        return why is not None

    def _report(self, kind: str, line: str) -> None:
        self.wrong[kind].append(line)
        print(f"{kind}: {line}", flush=True)


def before(data: bytes, short_side: int) -> Image.Image:
    """Decodes a JPEG as version 0.1.0 did."""
    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    if short_side:
        image.draft(image.mode, (2 * short_side, 2 * short_side))
    image.load()
    image.getexif()
    return image.convert("RGB") if image.mode != "RGB" else image


def cost(files: list[bytes]) -> dict[str, float]:
    """Returns the ratio of CPU time, ours to `before`, by short side."""
    ratios = {}
    for short_side in SHORT_SIDES:
        seconds = {"ours": 0.0, "before": 0.0}
        for data in files:
            least = dict.fromkeys(seconds, float("inf"))
            for _ in range(COST_ROUNDS):
                for name in least:
                    started = time.thread_time()
                    images.decode(data, short_side=short_side) if name == "ours" else before(data, short_side)
                    least[name] = min(least[name], time.thread_time() - started)
            for name in seconds:
                seconds[name] += least[name]
        ratios[str(short_side)] = round(seconds["ours"] / seconds["before"], 3)
        each = {name: f"{1000 * value / len(files):.2f} ms" for name, value in seconds.items()}
        print(
            f"CPU per JPEG, short side {short_side or 'full'}: ours {each['ours']}, before {each['before']}", flush=True
        )
    return ratios


def instruction_set() -> str:
    """Names the widest vector instructions of this processor."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return next((name for name in ("avx512f", "avx2", "sse4_2", "asimd") if f" {name} " in flags), "unknown")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_FILES} files of each folder")
    parser.add_argument("--no-cost", action="store_true", help="does not measure CPU time")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    comparison, photographs = Comparison(), []
    sources = [files_below(folder) for folder in arguments.folders] or [default_files()]
    for files in sources:
        for number, (name, data) in enumerate(files):
            if arguments.quick and number >= QUICK_FILES + 200 * (not arguments.folders):
                break
            comparison.compare(name, data)
            if (
                len(photographs) < COST_FILES
                and name.endswith((".jpg", ".jpeg"))
                and not isinstance(ours(data), ImageError)
            ):
                photographs.append(data)
    for verdict, count in sorted(comparison.verdicts.items()):
        print(f"{count:7,} {verdict}")
    for why, count in comparison.exceptions.items():
        print(f"{count:7,} as intended: {why}")
    figures: dict = {kind: len(names) for kind, names in comparison.wrong.items()}
    if photographs and not arguments.no_cost:
        figures["cpu_of_before"] = cost(photographs[:10] if arguments.quick else photographs)
    figures |= {"files": sum(comparison.verdicts.values()), "instruction_set": instruction_set()}
    print(json.dumps(figures))
    sys.exit(any(comparison.wrong.values()))


if __name__ == "__main__":
    main()
