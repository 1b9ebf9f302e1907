"""The coefficient operator, SigRL's own cost: every implementation beside the plain equations and a bare product.

    python tests/bench/bench_head.py [--quick]

Both modules (pooled over patches, summed over labels), forward and backward, all implementations and the bare product
in turns; medians. Needs torch alone (and Triton on a GPU), whose GPU it uses where there is one.

- `of_matmul_rate`: useful FLOP/s of `chunked` in float32, four products of 2 B P C D D a module, over that of a bare
  product of as many rows;
- `speedup_vs_naive`, `bf16_speedup_vs_naive`: seconds of `naive` in float32 over those of `chunked`, its products in
  float32 and in bfloat16;
- `memory_vs_naive`: the most memory beyond what the process had before, as a fraction of what `naive` takes, each in a
  process of its own.

Then a table over labels, images and patches, the shape of NUS-WIDE (B32 P196 C925 D512), and the ranking loss at 7,186
labels. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from sigrl_core.model.coefficients import IMPLEMENTATIONS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAIVE_TENSORS = 8
"""Of B x C x P x D numbers, about, that `naive` holds at its peak."""


@dataclass(frozen=True)
class Shape:
    B: int = 2
    P: int = 196
    C: int = 81
    D: int = 512

    def __str__(self) -> str:
        return f"B{self.B} P{self.P} C{self.C} D{self.D}"

    @property
    def flop(self) -> float:
        """Of both modules, forward and backward, by four products: one forward, one made again, two of gradients."""
        return 2 * 4 * 2.0 * self.B * self.P * self.C * self.D**2

    @property
    def naive_bytes(self) -> float:
        return 4.0 * NAIVE_TENSORS * self.B * self.P * self.C * self.D


@dataclass(frozen=True)
class Way:
    """An implementation, with its matrix products in float32 or bfloat16."""

    implementation: str
    bf16: bool

    def __str__(self) -> str:
        return f"{self.implementation}, {'bf16' if self.bf16 else 'fp32'}"


def prepared(way: Way, shape: Shape) -> Callable[[], None]:
    """Both modules, forward and backward."""
    torch.manual_seed(0)
    B, P, C, D = shape.B, shape.P, shape.C, shape.D

    def leaf(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*size, device=DEVICE) * scale).requires_grad_()

    patches, labels, queries = leaf(B, P, D), leaf(C, D), leaf(B, C, D)
    weights = [(leaf(D, D, scale=D**-0.5),) for _ in range(2)]
    pooled_grad, summed_grad = torch.randn(B, C, D, device=DEVICE), torch.randn(B, P, D, device=DEVICE)
    function = IMPLEMENTATIONS[way.implementation]

    def step() -> None:
        for told, weight, pool, grad in (
            (labels, weights[0], True, pooled_grad),
            (queries, weights[1], False, summed_grad),
        ):
            with torch.autocast(DEVICE, torch.bfloat16, enabled=way.bf16):
                out = function(patches, told, weight, pool)
            torch.autograd.grad(out, (patches, told, *weight), grad)

    return step


def bare_product(bf16: bool, shape: Shape) -> Callable[[], None]:
    """As many products of all vectors as `Shape.flop` counts."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    rows = torch.randn(min(1 << 15, shape.B * shape.P * shape.C), shape.D, device=DEVICE, dtype=dtype)
    weight, out = torch.randn(shape.D, shape.D, device=DEVICE, dtype=dtype), torch.empty_like(rows)
    times = max(1, round(shape.flop / (2.0 * len(rows) * shape.D**2)))

    def products() -> None:
        for _ in range(times):
            torch.mm(rows, weight, out=out)

    return products


def seconds(call: Callable[[], None]) -> float:
    synchronize()
    started = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - started


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def _memory(way: Way, shape: Shape, pipe) -> None:
    step = prepared(way, shape)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        pipe.send(torch.cuda.max_memory_allocated() - before)
        return
    prepared(way, Shape(1, 4, 2, shape.D))()  # what a first call loads
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    step()
    pipe.send(_resident("VmHWM") - before)


def _resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def memory(way: Way, shape: Shape) -> int:
    """Bytes that forward and backward take at their peak, beyond inputs, in a process of their own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_memory, args=(way, shape, there))
    process.start()
    there.close()
    try:
        return here.recv()
    finally:
        process.join()


def in_turns(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # once, for what is made on the way
    for _ in range(rounds):
        for name, call in calls.items():
            spent[name].append(seconds(call))
    return {name: statistics.median(values) for name, values in spent.items()}


def ways() -> list[Way]:
    names = [name for name in IMPLEMENTATIONS if name != "triton" or DEVICE == "cuda"]
    return [Way(name, bf16) for name in names for bf16 in (False, True)]


def measured(shape: Shape, rounds: int, limit: float) -> list[dict]:
    """Rows of the table; ways that would take more than `limit` bytes are left out."""
    some = [way for way in ways() if way.implementation != "naive" or shape.naive_bytes < limit]
    calls = {f"product, {'bf16' if bf16 else 'fp32'}": bare_product(bf16, shape) for bf16 in (False, True)}
    calls |= {str(way): prepared(way, shape) for way in some}
    spent = in_turns(calls, rounds)
    rows = []
    for way in some:
        ceiling = spent[f"product, {'bf16' if way.bf16 else 'fp32'}"]
        used = memory(way, shape)
        rows.append(
            {
                "shape": str(shape),
                "way": str(way),
                "seconds": spent[str(way)],
                "gib": used / 2**30,
                "gflops": shape.flop / spent[str(way)] / 1e9,
                "of_product": ceiling / spent[str(way)],
            }
        )
        print(
            f"{shape!s:22} {way!s:16} {rows[-1]['seconds']:9.3f} s {rows[-1]['gib']:8.3f} GiB "
            f"{rows[-1]['gflops']:9.1f} GFLOP/s  {rows[-1]['of_product']:5.2f} of the bare product",
            flush=True,
        )
    return rows


def ranking(B: int, C: int) -> dict[str, float]:
    """Seconds and megabytes of the ranking loss, forward and backward."""
    from sigrl_core.losses import hinges

    torch.manual_seed(0)
    scores, states = torch.randn(B, C, device=DEVICE, requires_grad=True), torch.randn(B, C, device=DEVICE)

    def step() -> None:
        sums, _ = hinges(scores, states > 2, states <= 2)
        torch.autograd.grad(sums.sum(), scores)

    step()
    spent = statistics.median(seconds(step) for _ in range(5))
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    taken = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    return {"ranking_seconds": round(spent, 4), "ranking_mb_allocated_in_all": round(taken / 1e6, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    limit = 0.5 * (
        torch.cuda.get_device_properties(0).total_memory
        if DEVICE == "cuda"
        else 1024 * int(Path("/proc/meminfo").read_text().split()[1])
    )
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{DEVICE} ({name}), torch {torch.__version__}")
    rounds = 3 if arguments.quick else 9
    rows = measured(Shape(), rounds, limit)
    of = {row["way"]: row for row in rows}
    naive, fp32, bf16 = of["naive, fp32"], of["chunked, fp32"], of["chunked, bf16"]
    figures: dict[str, object] = {
        "of_matmul_rate": round(fp32["of_product"], 3),
        "speedup_vs_naive": round(naive["seconds"] / fp32["seconds"], 3),
        "bf16_speedup_vs_naive": round(naive["seconds"] / bf16["seconds"], 3),
        "memory_vs_naive": round(fp32["gib"] / naive["gib"], 3),
    }
    if not arguments.quick:
        for changes in ({"C": 20}, {"C": 320}, {"B": 8}, {"P": 49}, {"P": 576}):
            rows += measured(replace(Shape(), **changes), 3, limit)
        rows += measured(Shape(32, 196, 925), 1, limit)
    figures |= ranking(64, 7186)
    figures["rows"] = [{k: v if isinstance(v, str) else round(v, 4) for k, v in row.items()} for row in rows]
    print(json.dumps(figures | {"device": DEVICE}))


if __name__ == "__main__":
    main()
