"""The weight of every patch for every label and channel, the largest cost of SigRL (arXiv 2504.03801)::

    A[b,p,c,:] = softmax over p, separately for each channel, of  W tanh(X[b,p,:] * Q[b,c,:]) + b

Semantic decoupling needs sum_p A * X, SVFR needs sum_c A: 2 B P C D D FLOP each, and twice that for each gradient.
Three of the `IMPLEMENTATIONS` give the same result; only `naive` stores A, which has B x P x C x D elements. The
fourth, `int8`, has no gradients and is slightly less exact than products in bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from sigrl_core.errors import ConfigError
from sigrl_core.model.coefficients import chunked, naive, quantised

Reduce = Callable[[Tensor, Tensor, tuple[Tensor, ...], bool], Tensor]
"""(patches [B,P,D], queries [C,D] or [B,C,D], factors of W from the left, pool) -> sum_p A X [B,C,D] with `pool`, else
sum_c A [B,P,D]."""


def _reduce_fused(X_BPD: Tensor, Q: Tensor, weights: tuple[Tensor, ...], pool: bool) -> Tensor:
    from sigrl_core.model.coefficients import fused  # Triton is slow to import, and few processes use it

    return fused.reduce(X_BPD, Q, weights, pool)


IMPLEMENTATIONS: dict[str, Reduce] = {
    "naive": naive.reduce,
    "chunked": chunked.reduce,
    "int8": quantised.reduce,
}
if find_spec("triton"):
    IMPLEMENTATIONS["triton"] = _reduce_fused


class Coefficients(nn.Module):
    """The parameters W and b. b cancels in the softmax: it is not used, and its gradient is zero.

    Args:
        dim: D.
        rank: r of W = `up` `down`, whose products cost 2 r / D of those of a full W; None is the published form.
        implementation: a name of `IMPLEMENTATIONS`, or `auto`.
    """

    def __init__(self, dim: int, rank: int | None = None, implementation: str = "auto") -> None:
        super().__init__()
        self.implementation = implementation
        self.rank = rank
        shapes = {"weight": (dim, dim)} if rank is None else {"up": (dim, rank), "down": (rank, dim)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self.bias = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises like nn.Linear."""
        for weight in self.weights:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        nn.init.uniform_(self.bias, -(self.bias.numel() ** -0.5), self.bias.numel() ** -0.5)

    def start_uniform(self) -> None:
        """Makes every coefficient 1/P."""
        nn.init.zeros_(self.weights[0])

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """Factors of W, from the left."""
        return (self.weight,) if self.rank is None else (self.up, self.down)  # pyright: ignore

    def pool_patches(self, patches_BPD: Tensor, queries: Tensor) -> Tensor:
        """Computes sum_p A * X, [B, C, D]. `queries` are [C, D], the same for every image, or [B, C, D]."""
        return self._reduce(patches_BPD, queries, pool=True)

    def sum_labels(self, patches_BPD: Tensor, queries: Tensor) -> Tensor:
        """Computes sum_c A, [B, P, D]. `queries` are [C, D], the same for every image, or [B, C, D]."""
        return self._reduce(patches_BPD, queries, pool=False)

    def _reduce(self, patches_BPD: Tensor, queries: Tensor, pool: bool) -> Tensor:
        """Computes in the dtype of W; under autocast the products use its dtype."""
        dtype = self.bias.dtype
        device = patches_BPD.device.type
        bf16 = chunked.product_dtype(device, torch.float32) == torch.bfloat16
        name = resolve_implementation(self.implementation, self.rank, device, bf16, trains=torch.is_grad_enabled())
        if name not in IMPLEMENTATIONS:
            raise ConfigError(
                f"reconstruction.implementation is {name!r}, and Triton is not installed here; choose another one"
            )
        out = IMPLEMENTATIONS[name](patches_BPD.to(dtype), queries.to(dtype), self.weights, pool)
        return _UnusedBias.apply(out, self.bias)  # type: ignore[return-value]


def resolve_implementation(
    implementation: str, rank: int | None, device_type: str, bf16: bool, trains: bool = True
) -> str:
    """Returns the implementation that `auto` selects; any other name is returned unchanged.

    With bfloat16 products of a full matrix, `auto` selects the Triton kernels on a GPU, and for tagging 8-bit integers
    on a CPU with VNNI instructions.
    """
    if implementation != "auto":
        return implementation
    if bf16 and rank is None:
        if device_type == "cuda" and "triton" in IMPLEMENTATIONS:
            return "triton"
        if device_type == "cpu" and not trains and _has_vnni():
            return "int8"
    return "chunked"


def _has_vnni() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_vnni") or capabilities.get("avx_vnni"))


class _UnusedBias(torch.autograd.Function):
    """Gives the unused bias a gradient of zero, so that it takes part in the average over workers."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, bias: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.shape = bias.shape
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad, grad.new_zeros(ctx.shape)
