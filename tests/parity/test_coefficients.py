"""The implementations of the coefficient operator agree, values and gradients, on shapes of all kinds."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sigrl_core.config import ReconstructionConfig
from sigrl_core.errors import ConfigError
from sigrl_core.model.coefficients import IMPLEMENTATIONS, Coefficients, resolve_implementation

pytestmark = pytest.mark.parity
needs_triton = pytest.mark.skipif(
    not find_spec("triton"), reason="Triton is not installed (it comes with torch on Linux)"
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def difference(
    name: str, B: int, P: int, C: int, D: int, pool: bool, seed: int, rank: int | None = None, shared: bool = True,
    dtype: torch.dtype = torch.float64, bf16: bool = False, gradients: bool = True,
) -> float:  # fmt: skip
    """The largest relative difference to `naive` among value and gradients."""
    torch.manual_seed(seed)
    factors = [((D, D), D**-0.5)] if rank is None else [((D, rank), rank**-0.5), ((rank, D), D**-0.5)]
    sizes = [((B, P, D), 1.0), ((C, D) if shared else (B, C, D), 1.0), *factors]
    leaves = [(torch.randn(*size, dtype=dtype, device=DEVICE) * scale).requires_grad_() for size, scale in sizes]
    found = []
    for each, in_bf16 in ((name, bf16), ("naive", False)):
        with torch.autocast(DEVICE, torch.bfloat16, enabled=in_bf16), torch.set_grad_enabled(gradients):
            out = IMPLEMENTATIONS[each](leaves[0], leaves[1], tuple(leaves[2:]), pool)
        told = (out * torch.linspace(-1, 1, D, dtype=dtype, device=DEVICE)).square().sum()
        found.append([out.detach(), *(torch.autograd.grad(told, leaves) if gradients else ())])
    return max(((ours - true).norm() / (true.norm() + 1e-9)).item() for ours, true in zip(*found, strict=True))


SHAPES: dict[str, st.SearchStrategy] = {
    "B": st.integers(1, 3),
    "P": st.integers(1, 600),
    "C": st.integers(1, 2000),
    "D": st.integers(1, 130),
    "pool": st.booleans(),
    "shared": st.booleans(),
    "seed": st.integers(0, 2**31),
}
"""Multiples of no tile."""


def capped(most: int) -> st.SearchStrategy[dict[str, Any]]:
    """Shapes of at most so many numbers B x P x C x D."""
    return st.fixed_dictionaries(SHAPES).map(
        lambda shape: shape | {"C": max(1, min(shape["C"], most // (shape["B"] * shape["P"] * shape["D"])))}
    )


@settings(max_examples=60, deadline=None)
@given(shape=capped(1_000_000), rank=st.none() | st.integers(1, 9))
def test_chunked_is_naive(shape: dict[str, Any], rank: int | None) -> None:
    assert difference("chunked", **shape, rank=rank) < 1e-10


@needs_triton
@settings(max_examples=8, deadline=None)
@given(shape=capped(60_000))
def test_the_kernels_are_naive(shape: dict[str, Any]) -> None:
    few = max(1, 12 // shape["B"])  # labels: the interpreter takes tens of milliseconds for each
    assert difference("triton", **shape | {"C": min(shape["C"], few)}) < 1e-10


@needs_triton
@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("P", [9, 300])  # all patches in one tile, and more than a tile holds
@pytest.mark.parametrize(("dtype", "bf16", "most"), [(torch.float32, False, 1e-5), (torch.float32, True, 3e-2)])
def test_the_kernels_in_less_than_double(pool: bool, P: int, dtype: torch.dtype, bf16: bool, most: float) -> None:
    assert difference("triton", 2, P, 3, 40, pool, 0, dtype=dtype, bf16=bf16) < most


@pytest.mark.soak
@needs_triton
@pytest.mark.parametrize("pool", [True, False])
def test_the_extremes(soak: bool, pool: bool) -> None:
    for P, C, D in ((1, 2000, 130), (600, 20, 130)) if soak else ((1, 60, 20), (600, 1, 20)):
        for name in ("chunked", "triton"):
            assert difference(name, 1, P, C, D, pool, 0) < 1e-10


@pytest.mark.parametrize("pool", [True, False])
@settings(max_examples=25, deadline=None)
@given(shape=capped(300_000))
def test_eight_bits_are_close(pool: bool, shape: dict[str, Any]) -> None:
    """Within 2 % of the norm; products in bfloat16 are within 1 %."""
    shape |= {"pool": pool, "D": max(8, shape["D"])}
    assert difference("int8", **shape, dtype=torch.float32, gradients=False) < 2e-2


def test_tagging_in_bfloat16_multiplies_bytes_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    for name, function in IMPLEMENTATIONS.items():
        monkeypatch.setitem(IMPLEMENTATIONS, name, lambda *given, n=name, f=function: (used.append(n), f(*given))[1])
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True})
    layer, X, Q = Coefficients(16), torch.randn(1, 4, 16), torch.randn(3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        layer.sum_labels(X, Q)
        with torch.no_grad():
            layer.sum_labels(X, Q)
    with torch.no_grad():
        layer.sum_labels(X, Q)
    assert used == ["chunked", "int8", "chunked"]


def test_a_low_rank_layer_is_that_of_its_product() -> None:
    torch.manual_seed(0)
    low, full = Coefficients(12, rank=3).double(), Coefficients(12).double()
    full.weight.data = low.up.data @ low.down.data
    X, Q = torch.randn(2, 7, 12, dtype=torch.float64), torch.randn(5, 12, dtype=torch.float64)
    torch.testing.assert_close(low.pool_patches(X, Q), full.pool_patches(X, Q))
    torch.testing.assert_close(low.sum_labels(X, Q), full.sum_labels(X, Q))
    assert sum(p.numel() for p in low.parameters()) == 2 * 3 * 12 + 12


def test_the_bias_has_a_gradient_of_zero() -> None:
    layer = Coefficients(6)
    layer.sum_labels(torch.randn(1, 4, 6), torch.randn(3, 6)).sum().backward()
    assert layer.bias.grad is not None
    assert not layer.bias.grad.any()


def test_a_full_layer_starts_as_a_linear_one() -> None:
    torch.manual_seed(3)
    layer = Coefficients(8)
    torch.manual_seed(3)
    linear = torch.nn.Linear(8, 8)
    assert torch.equal(layer.weight, linear.weight)
    assert torch.equal(layer.bias, linear.bias)
    assert math.isclose(Coefficients(64, rank=4).up.std().item(), 4**-0.5 / 3**0.5, rel_tol=0.2)


def test_the_automatic_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        resolve_implementation("auto", None, "cpu", True)
        == resolve_implementation("auto", None, "cuda", False)
        == "chunked"
    )
    assert resolve_implementation("auto", 4, "cuda", True) == "chunked"
    assert resolve_implementation("naive", None, "cuda", True) == "naive"
    monkeypatch.setitem(IMPLEMENTATIONS, "triton", IMPLEMENTATIONS["naive"])
    assert resolve_implementation("auto", None, "cuda", True) == "triton"
    monkeypatch.delitem(IMPLEMENTATIONS, "triton")
    assert resolve_implementation("auto", None, "cuda", True) == "chunked"
    for told, expected in (({"avx512_vnni": True}, "int8"), ({"avx_vnni": True}, "int8"), ({"sse2": True}, "chunked")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda told=told: told)
        assert resolve_implementation("auto", None, "cpu", True, trains=False) == expected
        assert (
            resolve_implementation("auto", None, "cpu", True)
            == resolve_implementation("auto", 4, "cpu", True, trains=False)
            == "chunked"
        )
        assert resolve_implementation("auto", None, "cpu", False, trains=False) == "chunked"
    with pytest.raises(ConfigError, match="Triton is not installed here; choose another one"):
        Coefficients(4, implementation="triton").sum_labels(torch.zeros(1, 2, 4), torch.zeros(3, 4))
    with pytest.raises(ConfigError, match="the kernels support only a full matrix"):
        ReconstructionConfig(coefficient_rank=4, implementation="triton")
