"""The coefficient operator, SigRL's own cost: every implementation beside the plain equations and a bare product.

    python tests/bench/bench_head.py [--out runs/bench_head] [--quick]

Both modules (pooled over patches, summed over labels), all implementations and the bare product in turns; medians.
Forward and backward, and forward alone as for tagging. Needs torch alone (and Triton on a GPU), whose GPU it uses where
there is one.

- `of_matmul_rate`: useful FLOP/s of `chunked` in float32, four products of 2 B P C D D a module, over that of a bare
  product of as many rows;
- `speedup_vs_naive`, `bf16_speedup_vs_naive`: seconds of `naive` in float32 over those of `chunked`, its products in
  float32 and in bfloat16;
- `memory_vs_naive`: the most memory beyond what the process had before, as a fraction of what `naive` takes, each in a
  process of its own;
- `memory_growth_c64_c1024`: the workspace at 1,024 labels over that at 64, as bench_memory.py follows it;
- `inference_speedup`: seconds of `chunked` in float32 over those of the fastest way, forward alone.

Then a table over labels, images and patches, drawn in OUT/scaling.html, the shape of NUS-WIDE (B32 P196 C925 D512), the
ranking loss at 7,186 labels and the label graph at 1,006 and 7,186. Ends with one JSON line.
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
from tests.bench.bench_memory import growth

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

    def flop(self, trains: bool) -> float:
        """Of both modules, one product forward, and with `trains` it made again and two of gradients."""
        return 2 * (4 if trains else 1) * 2.0 * self.B * self.P * self.C * self.D**2

    @property
    def naive_bytes(self) -> float:
        return 4.0 * NAIVE_TENSORS * self.B * self.P * self.C * self.D


@dataclass(frozen=True)
class Way:
    """An implementation, with its matrix products in float32 or bfloat16; `int8` has its own."""

    implementation: str
    bf16: bool

    def __str__(self) -> str:
        return self.implementation if self.implementation == "int8" else f"{self.implementation}, {self.products}"

    @property
    def products(self) -> str:
        return "bf16" if self.bf16 else "fp32"


def prepared(way: Way, shape: Shape, trains: bool) -> Callable[[], None]:
    """Both modules, forward, and with `trains` backward."""
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
            with torch.autocast(DEVICE, torch.bfloat16, enabled=way.bf16), torch.set_grad_enabled(trains):
                out = function(patches, told, weight, pool)
            if trains:
                torch.autograd.grad(out, (patches, told, *weight), grad)

    return step


def bare_product(bf16: bool, shape: Shape, trains: bool) -> Callable[[], None]:
    """As many products of all vectors as `Shape.flop` counts."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    rows = torch.randn(min(1 << 15, shape.B * shape.P * shape.C), shape.D, device=DEVICE, dtype=dtype)
    weight, out = torch.randn(shape.D, shape.D, device=DEVICE, dtype=dtype), torch.empty_like(rows)
    times = max(1, round(shape.flop(trains) / (2.0 * len(rows) * shape.D**2)))

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


def _memory(way: Way, shape: Shape, trains: bool, pipe) -> None:
    step = prepared(way, shape, trains)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        pipe.send(torch.cuda.max_memory_allocated() - before)
        return
    prepared(way, Shape(1, 4, 2, shape.D), trains)()  # what a first call loads
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    step()
    pipe.send(_resident("VmHWM") - before)


def _resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def memory(way: Way, shape: Shape, trains: bool) -> int:
    """Bytes taken at the peak, beyond inputs, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_memory, args=(way, shape, trains, there))
    process.start()
    there.close()
    try:
        return here.recv()
    finally:
        process.join()


def in_turns(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values() if rounds > 1 else ():
        call()  # once, for what is made on the way
    for _ in range(rounds):
        for name, call in calls.items():
            spent[name].append(seconds(call))
    return {name: statistics.median(values) for name, values in spent.items()}


def ways(trains: bool) -> list[Way]:
    names = [name for name in IMPLEMENTATIONS if name != "int8" and (name != "triton" or DEVICE == "cuda")]
    some = [Way(name, bf16) for name in names for bf16 in (False, True)]
    return some if trains or DEVICE != "cpu" else [*some, Way("int8", True)]


def measured(shape: Shape, rounds: int, limit: float, trains: bool = True) -> list[dict]:
    """Rows of the table; ways that would take more than `limit` bytes are left out."""
    some = [way for way in ways(trains) if way.implementation != "naive" or shape.naive_bytes < limit]
    products = {f"product, {'bf16' if bf16 else 'fp32'}": bf16 for bf16 in (False, True)}
    calls = {name: bare_product(bf16, shape, trains) for name, bf16 in products.items()}
    calls |= {str(way): prepared(way, shape, trains) for way in some}
    spent = in_turns(calls, rounds)
    rows = []
    for way in some:
        took, used = spent[str(way)], memory(way, shape, trains)
        row = {
            "B": shape.B, "P": shape.P, "C": shape.C, "D": shape.D, "trains": trains, "way": str(way),
            "seconds": took, "gib": used / 2**30, "gflops": shape.flop(trains) / took / 1e9,
            "of_product": spent[f"product, {way.products}"] / took,
        }  # fmt: skip
        rows.append(row)
        print(
            f"{shape!s:22} {'forward, backward' if trains else 'forward':17} {way!s:16} {took:9.3f} s "
            f"{row['gib']:8.3f} GiB {row['gflops']:9.1f} GFLOP/s  {row['of_product']:5.2f} of the bare product",
            flush=True,
        )
    return rows


PAGE = """{% extends "base.html.j2" %}
{% from "macros.html.j2" import section, panels %}
{% set title, sections = "The coefficient operator", [("scaling", "Scaling")] %}
{% block lead %}{{ lead }}{% endblock %}
{% block content %}{% call section("scaling", "Scaling") %}{{ panels(charts) }}{% endcall %}{% endblock %}
"""


def drawn(rows: list[dict], out: Path) -> None:
    """OUT/scaling.html: seconds and memory of forward and backward over labels, images and patches."""
    from sigrl_core.report.charts import Line, Panel, line_chart
    from sigrl_core.report.page import environment

    base, charts = Shape(), []
    for axis, name in (("C", "labels"), ("B", "images"), ("P", "patches")):
        for measure, unit in (("seconds", "s"), ("gib", "GiB")):
            lines = []
            for way in dict.fromkeys(row["way"] for row in rows):
                shapes = {row[axis]: row[measure] for row in rows if row["way"] == way and _varies(row, axis, base)}
                lines.append(Line(way, sorted(shapes.items())))
            head = f"{'Seconds' if unit == 's' else 'Memory'} over {name}"
            chart = line_chart(head, lines, x_title=name, y_title=unit)
            charts.append(Panel(head, chart, [line.name for line in lines]))
    lead = f"{base} where not varied; forward and backward of both modules, {DEVICE}."
    out.mkdir(parents=True, exist_ok=True)
    (out / "scaling.html").write_text(environment().from_string(PAGE).render(lead=lead, charts=charts))


def _varies(row: dict, axis: str, base: Shape) -> bool:
    """Whether all else is as in `base`."""
    return row["trains"] and all(row[other] == getattr(base, other) for other in "BPCD" if other != axis)


def ranking(B: int, C: int) -> dict[str, float]:
    """Seconds and megabytes of the ranking loss, forward and backward."""
    from sigrl_core.training.losses import hinges

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


def label_graph(C: int, D: int = 512) -> float:
    """Seconds of the label graph's forward and backward."""
    from sigrl_core.config import GraphConfig
    from sigrl_core.model.label_graph import LabelGraph

    torch.manual_seed(0)
    graph, labels_CD = LabelGraph(D, GraphConfig()).to(DEVICE), torch.randn(C, D, device=DEVICE, requires_grad=True)
    return statistics.median(seconds(lambda: graph(labels_CD).sum().backward()) for _ in range(3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_head"))
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
    forward = {row["way"]: row["seconds"] for row in measured(Shape(), rounds, limit, trains=False)}
    figures: dict[str, object] = {
        "of_matmul_rate": round(fp32["of_product"], 3),
        "speedup_vs_naive": round(naive["seconds"] / fp32["seconds"], 3),
        "bf16_speedup_vs_naive": round(naive["seconds"] / bf16["seconds"], 3),
        "memory_vs_naive": round(fp32["gib"] / naive["gib"], 3),
        "inference_speedup": round(forward["chunked, fp32"] / min(forward.values()), 3),
        "inference_fastest": min(forward, key=lambda way: forward[way]),
    }
    if not arguments.quick:
        for axis, values in {"C": (20, 320, 925), "B": (1, 4, 8), "P": (49, 400, 576)}.items():
            for value in values:
                rows += measured(replace(Shape(), **{axis: value}), 3, limit)
        drawn(rows, arguments.out)
        rows += measured(Shape(32, 196, 925), 1, limit)
    grown = growth(2, 196, 128 if arguments.quick else 512)
    figures["memory_growth_c64_c1024"] = round(1 + max(grown.values()), 4)
    figures |= ranking(64, 7186)
    figures |= {f"label_graph_{C}_seconds": round(label_graph(C), 3) for C in (1006, 7186)}
    figures["rows"] = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    print(json.dumps(figures | {"device": DEVICE}))


if __name__ == "__main__":
    main()
