"""The server beside its bare parts: decoding and forward passes of the same images on the same cores.

    python tests/bench/bench_serve.py [--out runs/bench_serve] [--quick]

Starts serve.py as users do, one replica with as many threads as there are cores, with random weights; who asks is this
process, on the same cores and at the same niceness. The bare parts are in a process of their own that does nothing
else: it decodes in as many threads and sends batches of 32 through the model, with nobody asking.

- throughput: clients that ask without a pause, 1, 8 and 64 of them, with one image a request and with 16; in turns
  with the bare parts. `of_bare_forward` is the best of these rates with ViT-B/16, and of 16 images a request with the
  quickstart model, / the bare rate.
- `median_overhead_ms`: one image with the quickstart model, asked of the server and given to the bare parts in turns;
  the difference of the medians.
- overload: four times the rate that the server keeps up with, for some seconds; what was not 200, 429 or 503 counts as
  `unexpected_failures`; `overload_p99_s` is of those that were answered.

Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import aiohttp
import numpy as np

from tests.conftest import COCO160, untrained_checkpoint
from tests.photographs import write_photographs

REPOSITORY = Path(__file__).resolve().parents[2]
BATCH, PORT, CORES = 32, 8765, os.cpu_count() or 1
BURST_SECONDS = 0.3
"""Answers of one batch are no further apart."""


# ---- the bare parts ----


def _bare(checkpoint: str, paths: list[Path], pipe: Connection) -> None:
    """Answers `n`: seconds that n images take, decoded and tagged."""
    import torch

    from sigrl_core.data.images import centre_crop_array
    from sigrl_core.inference.tagger import Tagger

    torch.set_num_threads(CORES)
    tagger, payloads = Tagger.load(checkpoint), [path.read_bytes() for path in paths]
    size, decoders = tagger.model.backbone.image_size, ThreadPoolExecutor(CORES)
    while count := pipe.recv():
        some = [payloads[number % len(payloads)] for number in range(count)]
        started = time.perf_counter()
        batches = [some[start : start + BATCH] for start in range(0, count, BATCH)]
        ahead = [decoders.submit(centre_crop_array, payload, size) for payload in batches[0]]
        for number in range(len(batches)):
            crops = [future.result() for future in ahead]
            if number + 1 < len(batches):
                ahead = [decoders.submit(centre_crop_array, payload, size) for payload in batches[number + 1]]
            tagger.tag(crops)
        pipe.send(time.perf_counter() - started)


@contextmanager
def bare_parts(checkpoint: str, paths: list[Path]) -> Iterator[Any]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_bare, args=(checkpoint, paths, there))
    process.start()

    def seconds(count: int) -> float:
        here.send(count)
        return here.recv()

    seconds(BATCH)
    try:
        yield seconds
    finally:
        here.send(0)
        process.join()


# ---- ours ----


@contextmanager
def served(checkpoint: str, out: Path) -> Iterator[str]:
    flags = ["--checkpoint", checkpoint, "--port", str(PORT), "--cpus-per-worker", str(CORES)]
    flags += ["--requests-per-minute", "10000000", "--vocabularies", str(out / "vocabularies")]
    log = (out / "serve.log").open("w+")
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "pipelines" / "serve.py"), *flags], stdout=log, stderr=subprocess.STDOUT
    )
    try:
        while "serving: http" not in (out / "serve.log").read_text():
            assert process.poll() is None, (out / "serve.log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{PORT}/v1/tag"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


class Requests:
    """Bodies made once, so that asking costs little."""

    def __init__(self, url: str, paths: list[Path], images: int) -> None:
        self.url, self.images, self.bodies = url, images, []
        payloads = [path.read_bytes() for path in paths]
        for start in range(0, len(payloads) - images + 1, images):
            parts = [
                b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n' + payload + b"\r\n"
                for payload in payloads[start : start + images]
            ]
            self.bodies.append(b"".join(parts) + b"--x--\r\n")

    async def ask(self, session: aiohttp.ClientSession, number: int) -> tuple[int, float]:
        """Status (0 where there was none) and seconds."""
        started = time.perf_counter()
        try:
            async with session.post(
                self.url,
                data=self.bodies[number % len(self.bodies)],
                headers={"Content-Type": "multipart/form-data; boundary=x"},
            ) as response:
                await response.read()
                status = response.status
        except aiohttp.ClientError:
            status = 0
        return status, time.perf_counter() - started

    async def closed(self, clients: int, seconds: float) -> tuple[float, Counter[int]]:
        """Images a second that so many clients get answered. Answers come in bursts, a batch each; counted is what
        comes after the first burst, over the time from that one to the last."""
        statuses, answered = Counter[int](), list[float]()
        end = time.perf_counter() + seconds

        async def client(number: int) -> None:
            while time.perf_counter() < end:
                status, _ = await self.ask(session, number)
                statuses[status] += 1
                answered.append(time.perf_counter())
                number += clients

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(client(number) for number in range(clients)))
        full = [at for at in sorted(answered) if at <= end]  # later on, clients leave, and batches are not full
        counted = sum(at > full[0] + BURST_SECONDS for at in full)
        return counted * self.images / (full[-1] - full[0]), statuses

    async def open(self, per_second: float, seconds: float) -> tuple[Counter[int], list[float]]:
        """Statuses, and seconds of those that were answered, of requests that come whether or not others are done."""

        async def one(number: int) -> tuple[int, float]:
            await asyncio.sleep(number / per_second)
            return await self.ask(session, number)

        timeout = aiohttp.ClientTimeout(total=300)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
            told = await asyncio.gather(*(one(number) for number in range(int(per_second * seconds))))
        return Counter(status for status, _ in told), [spent for status, spent in told if status == 200]


def throughput(name: str, checkpoint: str, paths: list[Path], out: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Rates in turns with the bare parts."""
    rates: dict[str, list[float]] = {}
    failures = 0
    with bare_parts(checkpoint, paths) as bare, served(checkpoint, out) as url:
        ways = [(1, 1), (8, 1), (64, 1), (8, 16)] + ([] if name == "ViT-B-16" else [(1, 16)])
        asking = {images: Requests(url, paths, images) for images in (1, 16)}
        asyncio.run(asking[1].closed(4, 2))
        count = max(BATCH, BATCH * round(seconds / (bare(BATCH) + 1e-9)))
        for number in range(rounds):
            rates.setdefault("bare", []).append(count / bare(count))
            for clients, images in ways:
                rate, statuses = asyncio.run(asking[images].closed(clients, seconds))
                failures += sum(statuses.values()) - statuses[200]
                rates.setdefault(f"clients_{clients}_images_{images}", []).append(rate)
            rates["bare"].append(count / bare(count))
            print(
                f"{name}, round {number + 1}: " + ", ".join(f"{k} {v[-1]:.1f}/s" for k, v in rates.items()), flush=True
            )
        figures: dict[str, Any] = {key: round(statistics.median(values), 2) for key, values in rates.items()}
        figures["failures"] = failures
        if name != "ViT-B-16":
            figures |= latency(asking[1], bare, 40 * rounds)
            figures |= overload(asking[1], figures["clients_64_images_1"], seconds)
    wanted = "clients_" if name == "ViT-B-16" else ("clients_1_images_16", "clients_8_images_16")
    best = max(rate for key, rate in figures.items() if key.startswith(wanted))
    figures["of_bare_forward"] = round(best / figures["bare"], 4)
    return figures


def latency(asking: Requests, bare: Any, count: int) -> dict[str, float]:
    async def all_of_them() -> tuple[list[float], list[float]]:
        ours, theirs = [], []
        async with aiohttp.ClientSession() as session:
            for number in range(count):
                ours.append((await asking.ask(session, number))[1])
                theirs.append(bare(1))
        return ours, theirs

    ours, theirs = asyncio.run(all_of_them())
    medians = [1000 * statistics.median(some) for some in (ours, theirs)]
    return {
        "median_ms": round(medians[0], 2),
        "bare_median_ms": round(medians[1], 2),
        "median_overhead_ms": round(medians[0] - medians[1], 2),
    }


def overload(asking: Requests, rate: float, seconds: float) -> dict[str, Any]:
    statuses, spent = asyncio.run(asking.open(4 * rate, 2 * seconds))
    unexpected = sum(count for status, count in statuses.items() if status not in (200, 429, 503))
    print(f"overload of {4 * rate:.0f} requests/s: {dict(statuses)}", flush=True)
    return {
        "overload_answered": statuses[200],
        "overload_turned_away": statuses[429] + statuses[503],
        "unexpected_failures": unexpected,
        "overload_p99_s": round(float(np.percentile(spent, 99)), 2) if spent else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_serve"))
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    write_photographs(COCO160, out / "photographs", 320)
    paths = sorted((out / "photographs").rglob("*.jpg"))
    rounds, seconds = (1, 5.0) if arguments.quick else (3, 10.0)
    figures = {}
    for name, times in (("toybox-vit", 1), ("ViT-B-16", 6)):
        checkpoint = out / f"checkpoint_{name}"
        if not checkpoint.exists():
            untrained_checkpoint(checkpoint, backbone=name)
        figures[name] = throughput(name, str(checkpoint), paths, out, rounds, times * seconds)
    small, large = figures["toybox-vit"], figures["ViT-B-16"]
    print(
        json.dumps(
            {
                "of_bare_forward": large["of_bare_forward"],
                "of_bare_forward_quickstart": small["of_bare_forward"],
                "median_overhead_ms": small["median_overhead_ms"],
                "unexpected_failures": small["unexpected_failures"],
                **figures,
                "cores": CORES,
            }
        )
    )


if __name__ == "__main__":
    main()
