"""Photographs to shards: ours beside two bare processes and beside Ray Data's own reader, on the same cores.

    python tests/bench/bench_preprocess.py [--photographs FOLDER] [--out runs/bench_preprocess] [--quick]

5,000 distinct crops of the photographs in FOLDER (a few dozen JPEGs of about 640 x 480) are made once. Then, in turns:

- bare: as many processes as there are cores, each over its share: read, decode, resize, encode, sha256 by the functions
  that ours uses; nothing is written. Once before and once after ours, since machines shared with others change speed
  from one ten seconds to the next; the mean counts;
- ours: `preprocess.py --corpus folder`, by its own run log from the first part's start to the last one's end;
- parts: what ours does, its parts one after another in as many bare processes, without Ray: what a row costs beyond
  decoding (hashes of shards, Parquet, waiting for the disk) is between bare and parts, what Ray costs between parts
  and ours;
- read_images: `ray.data.read_images(size=...).write_parquet(...)`, the whole of both after Ray has started.

Ends with one JSON line; `of_bare_loop`, `of_parts` and `of_read_images` are medians over the rounds of our rate over
theirs. --quick takes 1,500 photographs and one round, about two minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sigrl_core.config import PreprocessConfig
from sigrl_core.corpora.listing_file import list_partitions, read_listing_summary
from sigrl_core.data.images import to_jpeg
from sigrl_core.io.checksums import sha256_of
from sigrl_core.on_ray.preprocess import LISTING, preprocess_partition
from tests.photographs import write_photographs

PREPROCESS = Path(__file__).resolve().parents[2] / "pipelines" / "preprocess.py"
PHOTOGRAPHS = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco160"
SHORT_SIDE, QUALITY = 256, 90
CORES = os.cpu_count() or 1
_EACH = range(CORES)
READ_IMAGES = """
import sys, time, ray
ray.init(num_cpus=int(sys.argv[3]), include_dashboard=False, logging_level="ERROR", log_to_driver=False)
context = ray.data.DataContext.get_current()
context.enable_progress_bars = False
ray.data.range(8).materialize()  # workers are there
started = time.monotonic()
ds = ray.data.read_images(sys.argv[1], size=(256, 341), mode="RGB", include_paths=True, override_num_blocks=64)
ds.write_parquet(sys.argv[2])
print(time.monotonic() - started)
"""


def bare(paths: list[Path]) -> float:
    """Seconds that bare processes take, from the first row to the last."""
    shares = [paths[len(paths) * i // CORES : len(paths) * (i + 1) // CORES] for i in _EACH]
    return _in_processes(_bare_share, [(share,) for share in shares])


def parts(folder: Path, out: Path) -> float:
    """Seconds that bare processes take for the parts of the listing that ours left."""
    config = PreprocessConfig(corpus="folder", images=str(folder), out=str(out), short_side=SHORT_SIDE, quality=QUALITY)
    return _in_processes(_parts_share, [(config, i) for i in _EACH])


def _in_processes(share: Callable, arguments: Sequence[tuple]) -> float:
    barrier = get_context("spawn").Barrier(CORES + 1)
    processes = [get_context("spawn").Process(target=share, args=(barrier, *each)) for each in arguments]
    for process in processes:
        process.start()
    barrier.wait(timeout=120)
    started = time.monotonic()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError("a process of the peer failed; its error is above")
    return time.monotonic() - started


def _bare_share(barrier, paths: list[Path]) -> None:
    barrier.wait()
    for path in paths:
        data = path.read_bytes()
        to_jpeg(data, SHORT_SIDE, QUALITY)
        sha256_of(data)


def _parts_share(barrier, config: PreprocessConfig, first: int) -> None:
    listing = f"{config.out}/{LISTING}"
    vocabulary, found = read_listing_summary(listing).vocabulary, list_partitions(listing)
    barrier.wait()
    for part in found[first::CORES]:
        preprocess_partition(config, vocabulary, part)


def ours(folder: Path, out: Path) -> tuple[float, float, float]:
    """Seconds from the first row to the last, before the first, and after the last."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, PREPROCESS, "--corpus", "folder", "--images", folder]
    command += ["--short-side", SHORT_SIDE, "--quality", QUALITY, "--out", out, "--rows-per-shard", 250]
    started = time.time()
    subprocess.run([*map(str, command)], check=True, capture_output=True, env=_environment())
    ended = time.time()
    log = [json.loads(line) for line in (out / "run_log.jsonl").read_text().splitlines()]
    starts = [datetime.fromisoformat(line["started"]).timestamp() for line in log]
    ends = [start + line["seconds"] for start, line in zip(starts, log, strict=True)]
    return max(ends) - min(starts), min(starts) - started, ended - max(ends)


def read_images(folder: Path, out: Path) -> float:
    """Seconds of Ray Data's own reader and writer."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-c", READ_IMAGES, str(folder), str(out), str(CORES)]
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=_environment())
    shutil.rmtree(out, ignore_errors=True)
    return float(found.stdout.split()[-1])


def _environment() -> dict[str, str]:
    return {**os.environ, "RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, default=PHOTOGRAPHS, help="folder of real photographs to crop")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_preprocess"))
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    count, rounds = (1500, 1) if arguments.quick else (5000, 7)
    folder = arguments.out.absolute() / f"photographs_{count}"
    if not arguments.photographs.is_dir():
        print(json.dumps({"skipped": "no photographs; give --photographs FOLDER"}))
        return
    write_photographs(arguments.photographs, folder, count)
    paths = sorted(folder.rglob("*.jpg"))
    print(f"{count} photographs, {sum(path.stat().st_size for path in paths) / 1e6 / count:.3f} MB each", flush=True)
    rates: dict[str, list[float]] = {"bare": [], "ours": [], "parts": [], "read_images": []}
    for number in range(rounds):
        earlier = bare(paths)
        seconds, before, after = ours(folder, arguments.out.absolute() / "shards")
        rates["ours"].append(count / seconds)
        rates["bare"].append(2 * count / (earlier + bare(paths)))
        rates["parts"].append(count / parts(folder, arguments.out.absolute() / "shards"))
        rates["read_images"].append(count / read_images(folder, arguments.out.absolute() / "read_images"))
        told = ", ".join(f"{name} {values[-1]:.0f}" for name, values in rates.items())
        print(f"round {number + 1}: rows/s {told}; ours took {before:.1f} s to start, {after:.1f} s to end", flush=True)
    ratios = {
        name: [mine / other for mine, other in zip(rates["ours"], rates[name], strict=True)]
        for name in ("bare", "parts", "read_images")
    }
    figures = {
        "of_bare_loop": round(statistics.median(ratios["bare"]), 3),
        "of_parts": round(statistics.median(ratios["parts"]), 3),
        "of_read_images": round(statistics.median(ratios["read_images"]), 3),
        "rows_per_second": {name: round(statistics.median(values), 1) for name, values in rates.items()},
        "photographs": count,
        "rounds": rounds,
        "cores": CORES,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
