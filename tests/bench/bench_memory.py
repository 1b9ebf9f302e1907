"""Peak memory of the coefficient operator, forward and backward, beyond its own inputs, outputs and gradients.

    python tests/bench/bench_memory.py [--quick]

Every tensor storage is followed from the moment torch makes it until it is freed. Ends with one JSON line;
`memory_growth_c64_c1024` is the growth of the worse operator from 64 to 1,024 labels, as a fraction. --quick measures a
narrower embedding, in seconds; the whole takes minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import time
import weakref

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sigrl_core.model.coefficients import chunked

OPERATORS = ("pooled", "summed")
LABELS = (64, 256, 1024)


class Allocations(TorchDispatchMode):
    """Follows the bytes of all storages made inside it; `peak` is the most that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        # What went in was made outside, or is known already; an operator that returns an argument made nothing.
        given = {t.untyped_storage()._cdata for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known | given:
                    self._made(storage)
        return result

    def _made(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def measure(name: str, B: int, P: int, C: int, D: int) -> tuple[int, float]:
    """Bytes beyond inputs, outputs and gradients at the peak of forward and backward, and seconds."""
    torch.manual_seed(0)
    weight_DD, patches_BPD = nn.Linear(D, D).weight, torch.randn(B, P, D, requires_grad=True)
    queries = torch.randn(*((C, D) if name == "pooled" else (B, C, D))).requires_grad_()
    grad_out = torch.randn(B, C if name == "pooled" else P, D)
    start = time.perf_counter()
    with Allocations() as allocations:
        out = chunked.reduce(patches_BPD, queries, (weight_DD,), name == "pooled")
        out.backward(grad_out)
    leaves = (patches_BPD, queries, weight_DD)
    own = [out, *(leaf.grad for leaf in leaves if leaf.grad is not None)]
    return allocations.peak - sum(tensor.untyped_storage().nbytes() for tensor in own), time.perf_counter() - start


def growth(B: int, P: int, D: int) -> dict[str, float]:
    """Of each operator's memory from 64 to 1,024 labels, as a fraction; prints what it measures."""
    print(f"B{B} P{P} D{D} float32; MiB beyond inputs, outputs and gradients, and of one tensor B x P x C x D")
    print("operator     C       MiB  BxPxCxD  seconds")
    found = {}
    for name in OPERATORS:
        extra = {}
        for C in LABELS:
            extra[C], seconds = measure(name, B, P, C, D)
            print(f"{name:8} {C:5} {extra[C] / 2**20:9.2f} {4 * B * P * C * D / 2**20:8.0f} {seconds:8.1f}", flush=True)
        found[name] = extra[LABELS[-1]] / extra[LABELS[0]] - 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of the coefficient operator over the number of labels.")
    parser.add_argument("--quick", action="store_true", help="B2 D128 in place of B8 D512")
    B, P, D = (2, 196, 128) if parser.parse_args().quick else (8, 196, 512)
    found = growth(B, P, D)
    print(json.dumps({"memory_growth_c64_c1024": round(max(found.values()), 4), "shape": f"B{B} P{P} D{D}", **found}))


if __name__ == "__main__":
    main()
