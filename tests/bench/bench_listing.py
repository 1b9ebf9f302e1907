"""A million images listed and planned, memory while a hundred thousand are ingested, a listing of an object store.

    python tests/bench/bench_listing.py [--quick] [--out runs/bench_listing]
    python tests/bench/bench_listing.py --bucket NAME   # and AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY

1. Hard links to a few thousand small JPEGs, in a thousand folders and again in a single one, are listed and cut into
   parts in a fresh process: seconds, and the process's peak memory.
2. Distinct small JPEGs go through pipelines/preprocess.py. What the command and all its descendants hold is sampled
   twice a second, by driver, workers and the rest (Ray's own processes). RSS counts memory that processes share, such
   as Ray's object store, in each of them; PSS once. OUT/memory.svg shows it over the rows done. Growth after the first
   tenth is how far the peak after it is above the peak up to it.
3. 5,000 keys of a bucket are listed by `storage.walk` and, in turns, by the bare paginator of the same boto3 client.
   They are written below bench_listing/ where they are not there. Any S3 server will do, on this machine too: MinIO,
   OpenStack Swift. Without --bucket this is skipped, and null in the JSON.

Ends with one JSON line. Images and links stay in OUT for the next time; its file system has to take hard links. Needs
Linux, for /proc. The whole takes five minutes on two cores, --quick, a tenth of the images, one; its
first tenth lasts half a second, in which workers may still be growing to their size.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sigrl_core.corpora import get_corpus
from sigrl_core.corpora.listing_file import list_partitions, write_listing
from sigrl_core.io import object_store, storage
from sigrl_core.report.charts import HEIGHT, WIDTH, Line, line_chart

REPOSITORY = Path(__file__).resolve().parents[2]
LINKED_FROM = 2_000
PARTS = 100
SAMPLE_SECONDS = 0.5
KINDS = ("driver", "workers", "rest")
MEMORIES = ("Pss", "Rss")
KEYS, PREFIX, ROUNDS = 5_000, "bench_listing", 21
PR_SET_CHILD_SUBREAPER = 36
COLOURS = ("#0072b2", "#c25200", "#00805c", "#a8497f", "#7a6000")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_listing"), help="images, links and the plot")
    parser.add_argument("--bucket", help="of an object store, to list keys of it")
    parser.add_argument("--quick", action="store_true", help="a tenth of the images")
    parser.add_argument("--plan", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan:
        return print(json.dumps(plan(options.plan)))
    tenth = 10 if options.quick else 1
    figures = planned(options.out.absolute(), 1_000_000 // tenth)
    figures |= ingested(options.out.absolute(), 100_000 // tenth)
    figures["of_boto3_paginator"] = listed(options.bucket) if options.bucket else None
    print(json.dumps({"quick": options.quick, **figures}))


# ---- 1. listed and planned ----


def planned(out: Path, count: int) -> dict[str, Any]:
    images = made(out / "linked", lambda folder: draw(folder, LINKED_FROM))
    print(f"{count:,} hard links in   seconds  CPU seconds  peak MB  parts", flush=True)
    told = {}
    for folders in (1000, 1):
        where = made(out / f"{count}_in_{folders}", lambda new, folders=folders: link(images, new, count, folders))
        command = [sys.executable, __file__, "--plan", str(where)]
        told[folders] = found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        if found["rows"] != count:
            sys.exit(f"{where}: {found['rows']} of {count} links listed")
        row = f"{found['seconds']:12.1f} {found['cpu_seconds']:12.1f} {found['peak_mb']:8.0f} {found['parts']:6,}"
        print(f"{folders:8,} folder{'s' if folders > 1 else ' '} {row}", flush=True)
    return {
        **{f"planned_{key}": told[1000][key] for key in ("seconds", "peak_mb")},
        **{f"planned_flat_{key}": told[1][key] for key in ("seconds", "peak_mb")},
    }


def plan(images: str) -> dict[str, Any]:
    """What preprocess.py does before it starts Ray, in this process, with all that it imports."""
    import sigrl_core.on_ray.preprocess  # noqa: F401

    listing = images + ".parquet"
    started, worked = time.monotonic(), time.process_time()
    listed = write_listing(get_corpus("folder")(images, None), listing)
    parts = list_partitions(listing)
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - worked
    peak = megabytes(Path("/proc/self/status").read_text(), "VmHWM")
    told = {"seconds": round(seconds, 2), "cpu_seconds": round(cpu_seconds, 2), "peak_mb": round(peak, 1)}
    return {**told, "rows": listed.num_rows, "parts": len(parts)}


def made(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, made where an earlier run has not."""
    if not folder.exists():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        make(partial)
        partial.rename(folder)
    return folder


def draw(folder: Path, count: int) -> None:
    """Distinct images of 64 x 48 pixels, a thousand to a label."""
    rng = np.random.default_rng(0)
    for number in range(count):
        below = folder / f"label_{number // 1000:03d}"
        below.mkdir(exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        image.resize((64, 48), Image.Resampling.BICUBIC).save(below / f"{number:06d}.jpg", quality=90)


def link(images: Path, folder: Path, count: int, folders: int) -> None:
    sources = sorted(str(path) for path in images.rglob("*.jpg"))
    for number in range(count):
        below = f"{folder}/label_{number * folders // count:03d}" if folders > 1 else str(folder)
        os.makedirs(below, exist_ok=True)
        os.link(sources[number % len(sources)], f"{below}/{number:07d}.jpg")


# ---- 2. memory of preprocess ----


class Sample(NamedTuple):
    """MB that each kind of process holds, when so many rows are done."""

    seconds: float
    rows: int
    held: dict[str, dict[str, float]]
    """By `MEMORIES`, then by `KINDS`."""


def ingested(out: Path, count: int) -> dict[str, Any]:
    images, shards = made(out / f"{count}_images", lambda folder: draw(folder, count)), out / "shards"
    shutil.rmtree(shards, ignore_errors=True)
    command = [sys.executable, "pipelines/preprocess.py", "--corpus", "folder", "--images", str(images)]
    command += ["--out", str(shards), "--rows-per-shard", str(count // PARTS)]
    samples = list(watched(command, lambda: count // PARTS * parts_done(shards)))
    manifest = json.loads((shards / "manifest.json").read_text())
    if manifest["rows_out"] != count:
        sys.exit(f"{shards}: {manifest['rows_out']} of {count} images in shards")
    shutil.rmtree(shards)
    (out / "memory.svg").write_text(plot(samples))

    halves = {
        "up to the first tenth": [sample for sample in samples if sample.rows <= count / 10],
        "after it": [sample for sample in samples if sample.rows > count / 10],
    }
    print(f"\n{count:,} images ingested; MB at most  {'  '.join(KINDS)}     sum")
    for when, part in halves.items():
        for memory in MEMORIES:
            each = [max(sample.held[memory][kind] for sample in part) for kind in KINDS]
            numbers = "".join(f"{number:9.0f}" for number in (*each, peak(part, memory)))
            print(f"{when:24} {memory.upper():12}{numbers}")
    begun, rest = (peak(part, "Pss") for part in halves.values())
    working = [sample for sample in samples if 0 < sample.rows < count]
    rate = (working[-1].rows - working[0].rows) / (working[-1].seconds - working[0].seconds)
    print(
        f"{rate:.0f} rows/s, {samples[-1].seconds:.0f} s in all, {len(samples)} samples; {out / 'memory.svg'}",
        flush=True,
    )
    return {
        "ingest_peak_mb": round(max(begun, rest), 1),
        "ingest_peak_rss_mb": round(peak(samples, "Rss"), 1),
        "ingest_growth_after_first_tenth": round(rest / begun - 1, 4),
        "rows_per_second": round(rate, 1),
    }


def watched(command: list[str], rows_done: Callable[[], int]) -> Iterator[Sample]:
    """Runs the command to its end and samples it meanwhile."""
    # Whoever loses its parent becomes our child, so that no descendant leaves the tree.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=REPOSITORY)
    while process.poll() is None:
        rows, held = rows_done(), {memory: dict.fromkeys(KINDS, 0.0) for memory in MEMORIES}
        for number in descendants(os.getpid()):
            with suppress(OSError):  # it has ended
                kind = "driver" if number == process.pid else kind_of(number)
                told = Path(f"/proc/{number}/smaps_rollup").read_text()
                for memory in MEMORIES:
                    held[memory][kind] += megabytes(told, memory)
        yield Sample(time.monotonic() - started, rows, held)
        time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: ended with {process.returncode}")


def parts_done(shards: Path) -> int:
    with suppress(FileNotFoundError):  # before the first one
        return sum(not name.startswith(".") for name in os.listdir(shards / "parts"))
    return 0


def descendants(ancestor: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for number in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            after_name = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2]
            children.setdefault(int(after_name.split()[1]), []).append(int(number))
    found = list(children.get(ancestor, ()))
    for number in found:  # grows meanwhile
        found += children.get(number, ())
    return found


def kind_of(number: int) -> str:
    """A worker is default_worker.py until it is called by what it does, such as `ray::IDLE`; so are Ray's agents."""
    words = Path(f"/proc/{number}/cmdline").read_text().split("\0")
    title = words[0].strip()
    is_worker = title.startswith("ray::") and not title.endswith("Agent")
    return "workers" if is_worker or any(word.endswith("default_worker.py") for word in words) else "rest"


def megabytes(told: str, key: str) -> float:
    """Of a line `key: 123 kB` of /proc."""
    line = next((line for line in told.splitlines() if line.startswith(key + ":")), f"{key}: 0 kB")
    return int(line.split()[1]) * 1024 / 1e6


def peak(samples: list[Sample], memory: str) -> float:
    return max(sum(sample.held[memory].values()) for sample in samples)


def plot(samples: list[Sample]) -> str:
    def line(name: str, held: Callable[[Sample], float]) -> Line:
        return Line(name, [(sample.rows / 1000, held(sample)) for sample in samples])

    lines = [
        line(f"{memory.upper()}, sum", lambda sample, memory=memory: sum(sample.held[memory].values()))
        for memory in MEMORIES
    ]
    lines += [line(f"PSS, {kind}", lambda sample, kind=kind: sample.held["Pss"][kind]) for kind in KINDS]
    chart = line_chart("Memory of preprocess", lines, x_title="rows done, thousands", y_title="MB")
    style = "svg{background:#fff}text{font:10px sans-serif}.grid{stroke:#ddd}.s{fill:none;stroke-width:1.5}"
    style += "".join(f".s{i}{{stroke:{colour}}}.k{i}{{fill:{colour}}}" for i, colour in enumerate(COLOURS))
    key = "".join(f'<text class="k{i}" x="{46 + 70 * i}" y="-6">{each.name}</text>' for i, each in enumerate(lines))
    frame = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 -20 {WIDTH} {HEIGHT + 20}"'
    return (
        str(chart)
        .replace(f'viewBox="0 0 {WIDTH} {HEIGHT}"', frame, 1)
        .replace("</svg>", f"<style>{style}</style>{key}</svg>")
    )


# ---- 3. listing of an object store ----


def listed(bucket: str) -> float:
    """Seconds of the bare paginator over those of `storage.walk`: medians."""
    client = object_store.s3_client(object_store.S3Settings.from_environment())
    below = f"{PREFIX}/{KEYS}/"

    def bare() -> int:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=below)
        return sum(len(page.get("Contents", ())) for page in pages)

    def walked() -> int:
        return sum(1 for _ in storage.walk(f"s3://{bucket}/{below}"))

    if bare() < KEYS:
        keys = [f"{below}label_{number // 1000}/{number:06d}.jpg" for number in range(KEYS)]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda key: client.put_object(Bucket=bucket, Key=key, Body=key.encode()), keys))
    seconds: dict[Callable[[], int], list[float]] = {bare: [], walked: []}
    for _ in range(ROUNDS):
        for listing, spent in seconds.items():
            started = time.perf_counter()
            if listing() != KEYS:
                sys.exit(f"s3://{bucket}/{below}: {listing.__name__} did not find {KEYS} keys")
            spent.append(time.perf_counter() - started)
    peer, ours = (statistics.median(spent) for spent in seconds.values())
    print(f"\n{KEYS:,} keys listed: bare paginator {peer:.3f} s, storage.walk {ours:.3f} s, {KEYS / ours:,.0f} keys/s")
    return round(peer / ours, 3)


if __name__ == "__main__":
    main()
