"""How long each stage takes on a cluster, what it waits for, and what it costs: docs/SCALING.md.

    python cluster/scaling.py --gpu-hour 2.50 --cpu-hour 0.05
    python cluster/scaling.py --gpu-tflops 120 --labels 300 --cpus-per-gpu 16 --price-per-million-reads 0

A model, not a measurement of a cluster: CPU-seconds and bytes of a picture are what benchmarks measured on one machine
(docs/LOG.md), GPU-seconds are FLOP over the share of the peak that is assumed to be reached.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import tyro

CLUSTER_GPUS = (1, 8, 64)
PICTURES = (10**6, 10**8, 10**9)


@dataclass(frozen=True)
class Assumptions:
    """What is passed in. Defaults are of ViT-B/16 at 224 pixels and of list prices that you should replace."""

    labels: int = 81
    epochs: int = 5
    cpus_per_gpu: int = 8
    """CPUs of a GPU's machine; as many as cluster/kuberay asks for."""
    gigabits_per_machine: float = 25.0
    gpu_tflops: float = 989.0
    """Peak of dense bfloat16 products; 989 is an H100's."""
    reached: float = 0.3
    """Share of the peak that is reached. Not measured: no GPU was at hand."""
    reads_per_second: float = 5500.0
    """Of one prefix of a bucket, as Amazon documents for S3."""
    gpu_hour: float = 2.5
    """Price of a GPU with its share of the machine."""
    cpu_hour: float = 0.05
    """Price of a CPU where no GPU is wanted."""
    price_per_million_reads: float = 0.4


@dataclass(frozen=True)
class Stage:
    """What one picture takes.

    Attributes:
        cpu: seconds of a core.
        gflop: of the GPU.
        kilobytes: read from the store; what is written is less and at the same time.
        reads: requests to the store.
        alone: one process does it, on one core.
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
        # 2026-11-25: 665 rows/s on two cores, from a disk; 2026-11-27: what reading from a store takes
        Stage("preprocess", 2 / 665 + 1.3e-3, 0, 67, 1),
        # decoding a shrunk picture; a backward pass is two forward passes
        Stage("train", given.epochs * 2e-3, given.epochs * 3 * model, given.epochs * 28, 0),
        # 2026-11-27: read and decode
        Stage("tag", 1.3e-3 + 1.6e-3, model, 67, 1),
    ]


def rates(stage: Stage, given: Assumptions, gpus: int) -> dict[str, float]:
    """Pictures a second that each resource would allow by itself."""
    if stage.alone:
        return {"one CPU": 1 / stage.cpu, "reads of one prefix": given.reads_per_second / stage.reads}
    found = {"CPUs": given.cpus_per_gpu * gpus / stage.cpu}
    if stage.gflop:
        found["GPUs"] = gpus * given.gpu_tflops * 1e3 * given.reached / stage.gflop
    if stage.kilobytes:
        found["network"] = gpus * given.gigabits_per_machine * 1e6 / 8 / stage.kilobytes
    if stage.reads:
        found["reads of one prefix"] = given.reads_per_second / stage.reads
    return found


def lines(given: Assumptions) -> Iterator[str]:
    yield "| stage | GPUs | pictures/s | what it waits for | then | 1e6 pictures | 1e8 | 1e9 | price of 1e6 |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for stage in stages(given):
        for gpus in CLUSTER_GPUS:
            (first, rate), *rest = sorted(rates(stage, given, gpus).items(), key=lambda pair: pair[1])
            hours = [number / rate / 3600 for number in PICTURES]
            cpus = 1 if stage.alone else given.cpus_per_gpu * gpus
            machines = given.gpu_hour * gpus if stage.gflop else given.cpu_hour * cpus
            price = machines * hours[0] + given.price_per_million_reads * stage.reads
            second = f"{rest[0][0]} ({rest[0][1] / rate:.1f} times as much)" if rest else ""
            times = " | ".join(map(written, hours))
            yield f"| {stage.name} | {gpus} | {rate:,.0f} | {first} | {second} | {times} | {price:,.2f} |"


def written(hours: float) -> str:
    for unit, length in (("days", 24.0), ("h", 1.0), ("min", 1 / 60)):
        if hours >= 2 * length:
            return f"{hours / length:,.0f} {unit}"
    return f"{hours * 3600:,.0f} s"


if __name__ == "__main__":
    for line in lines(tyro.cli(Assumptions, description=__doc__)):
        print(line)
