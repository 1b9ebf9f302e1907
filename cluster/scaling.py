"""Estimates how long each stage takes on a cluster, which resource limits it, and what it costs: docs/SCALING.md.

    python cluster/scaling.py --gpu-hour 2.50 --cpu-hour 0.05
    python cluster/scaling.py --gpu-tflops 120 --labels 300 --cpus-per-gpu 16 --price-per-million-reads 0

The estimate is a model, not a measurement of a cluster. Benchmarks on one machine measured CPU seconds and bytes per
image (docs/LOG.md). GPU seconds are FLOP divided by an assumed share of the peak rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import tyro

CLUSTER_GPUS = (1, 8, 64)
IMAGES = (10**6, 10**8, 10**9)


@dataclass(frozen=True)
class Assumptions:
    """The inputs of the model. Defaults are for ViT-B/16 at 224 pixels, and list prices that you should replace."""

    labels: int = 81
    epochs: int = 5
    cpus_per_gpu: int = 8
    """CPUs per GPU; the number that cluster/kuberay requests."""
    gigabits_per_machine: float = 25.0
    gpu_tflops: float = 989.0
    """Peak rate of dense bfloat16 products; 989 is that of an H100."""
    reached: float = 0.3
    """Share of the peak rate that is reached. An assumption: no GPU was available to measure it."""
    reads_per_second: float = 5500.0
    """Read requests per second of one prefix of a bucket, as Amazon documents for S3."""
    gpu_hour: float = 2.5
    """Price of a GPU with its share of the machine, for one hour."""
    cpu_hour: float = 0.05
    """Price of a CPU in a machine without GPU, for one hour."""
    price_per_million_reads: float = 0.4


@dataclass(frozen=True)
class Stage:
    """The resources that one image needs in one stage.

    Attributes:
        cpu: seconds of a core.
        gflop: operations of the GPU, in units of 10^9.
        kilobytes: bytes read from the store; fewer bytes are written, at the same time.
        reads: requests to the store.
        alone: whether one process on one core does the stage.
    """

    name: str
    cpu: float
    gflop: float
    kilobytes: float
    reads: float
    alone: bool = False


def stages(given: Assumptions) -> list[Stage]:
    coefficients = given.labels * 2 * 2 * 196 * 512**2 / 1e9  # one product of both layers
    model = 35.0 + coefficients  # ViT-B/16: 17.6 billion multiplications and additions
    return [
        # 2026-11-24: a million links planned; 5,000 keys listed
        Stage("list", 8.3e-6 + 0.35 / 5000, 0, 0.2, 1e-3, alone=True),
        # 2026-11-25: 665 rows/s on two cores, from a disk; 2026-11-27: reading from a store
        Stage("preprocess", 2 / 665 + 1.3e-3, 0, 67, 1),
        # decoding a resized image; a backward pass counts as two forward passes
        Stage("train", given.epochs * 2e-3, given.epochs * 3 * model, given.epochs * 28, 0),
        # 2026-11-27: read and decode
        Stage("tag", 1.3e-3 + 1.6e-3, model, 67, 1),
    ]


def rates(stage: Stage, given: Assumptions, gpus: int) -> dict[str, float]:
    """Returns the images per second that each resource allows by itself."""
    if stage.alone:
        return {"one CPU": 1 / stage.cpu, "reads of one prefix": given.reads_per_second / stage.reads}
    limits = {"CPUs": given.cpus_per_gpu * gpus / stage.cpu}
    if stage.gflop:
        limits["GPUs"] = gpus * given.gpu_tflops * 1e3 * given.reached / stage.gflop
    if stage.kilobytes:
        limits["network"] = gpus * given.gigabits_per_machine * 1e6 / 8 / stage.kilobytes
    if stage.reads:
        limits["reads of one prefix"] = given.reads_per_second / stage.reads
    return limits


def lines(given: Assumptions) -> Iterator[str]:
    """Yields the lines of the table in docs/SCALING.md."""
    yield "| stage | GPUs | images/s | what it waits for | then | 1e6 images | 1e8 | 1e9 | price of 1e6 |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for stage in stages(given):
        for gpus in CLUSTER_GPUS:
            (first, rate), *rest = sorted(rates(stage, given, gpus).items(), key=lambda pair: pair[1])
            hours = [number / rate / 3600 for number in IMAGES]
            cpus = 1 if stage.alone else given.cpus_per_gpu * gpus
            machines = given.gpu_hour * gpus if stage.gflop else given.cpu_hour * cpus
            price = machines * hours[0] + given.price_per_million_reads * stage.reads
            second = f"{rest[0][0]} ({rest[0][1] / rate:.1f} times as much)" if rest else ""
            times = " | ".join(map(written, hours))
            yield f"| {stage.name} | {gpus} | {rate:,.0f} | {first} | {second} | {times} | {price:,.2f} |"


def written(hours: float) -> str:
    """Formats a duration."""
    for unit, length in (("days", 24.0), ("h", 1.0), ("min", 1 / 60)):
        if hours >= 2 * length:
            return f"{hours / length:,.0f} {unit}"
    return f"{hours * 3600:,.0f} s"


if __name__ == "__main__":
    for line in lines(tyro.cli(Assumptions, description=__doc__)):
        print(line)
