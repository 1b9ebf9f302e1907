"""SigRL's own cost: how much every patch tells of every label, by channel (arXiv 2504.03801)::

    A[b,p,c,:] = softmax over p, separately for each channel, of  W tanh(X[b,p,:] * Q[b,c,:]) + b

Semantic decoupling wants sum_p A * X, SVFR wants sum_c A: 2 B P C D D FLOP each, twice that again for either gradient.
Three implementations give the same, `IMPLEMENTATIONS`; but for the first none holds A, which is B x P x C x D numbers.
A fourth, `int8`, has no gradients and is a little less exact than products in bfloat16.
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

Reduced = Callable[[Tensor, Tensor, tuple[Tensor, ...], bool], Tensor]
"""(patches [B,P,D], queries [C,D] or [B,C,D], factors of W from the left, whether to pool) -> sum_p A X [B,C,D] where
pooled, else sum_c A [B,P,D]."""


def _fused(X_BPD: Tensor, Q: Tensor, weights: tuple[Tensor, ...], pool: bool) -> Tensor:
    from sigrl_core.model.coefficients import fused  # Triton takes a while to import, and few processes want it

    return fused.reduced(X_BPD, Q, weights, pool)


IMPLEMENTATIONS: dict[str, Reduced] = {
    "naive": naive.reduced,
    "chunked": chunked.reduced,
    "int8": quantised.reduced,
}
if find_spec("triton"):
    IMPLEMENTATIONS["triton"] = _fused


class Coefficients(nn.Module):
    """W and b. b cancels in the softmax: it is not used, and its gradient is zero.

    Args:
        dim: D.
        rank: r of W = `up` `down`, which costs 2 r / D of the products of a full W; None is the published form.
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
        """As nn.Linear does."""
        for weight in self.weights:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        nn.init.uniform_(self.bias, -(self.bias.numel() ** -0.5), self.bias.numel() ** -0.5)

    def start_uniform(self) -> None:
        """Has every coefficient be 1/P."""
        nn.init.zeros_(self.weights[0])

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """Factors of W, from the left."""
        return (self.weight,) if self.rank is None else (self.up, self.down)  # pyright: ignore

    def pooled(self, patches_BPD: Tensor, queries: Tensor) -> Tensor:
        """sum_p A * X, [B, C, D]. `queries` are [C, D], the same for every image, or [B, C, D]."""
        return self._reduced(patches_BPD, queries, pool=True)

    def summed(self, patches_BPD: Tensor, queries: Tensor) -> Tensor:
        """sum_c A, [B, P, D]. `queries` are [C, D], the same for every image, or [B, C, D]."""
        return self._reduced(patches_BPD, queries, pool=False)

    def _reduced(self, patches_BPD: Tensor, queries: Tensor, pool: bool) -> Tensor:
        """In the dtype of W; under autocast the products run in its dtype."""
        dtype = self.bias.dtype
        device = patches_BPD.device.type
        bf16 = chunked.product_dtype(device, torch.float32) == torch.bfloat16
        name = chosen(self.implementation, self.rank, device, bf16, trains=torch.is_grad_enabled())
        if name not in IMPLEMENTATIONS:
            raise ConfigError(
                f"reconstruction.implementation is {name!r}, and Triton is not installed here; choose another one"
            )
        out = IMPLEMENTATIONS[name](patches_BPD.to(dtype), queries.to(dtype), self.weights, pool)
        return _Cancelled.apply(out, self.bias)  # type: ignore[return-value]


def chosen(implementation: str, rank: int | None, device_type: str, bf16: bool, trains: bool = True) -> str:
    """The name of the implementation that is used for `auto`, or that one.

    Where products are asked for in bfloat16, of full matrices: the kernels on a GPU, whose speed is that of such
    products, and 8 bits for tagging on a CPU that multiplies them faster still.
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
    told = torch.cpu.get_capabilities()
    return bool(told.get("avx512_vnni") or told.get("avx_vnni"))


class _Cancelled(torch.autograd.Function):
    """Gives a bias that is not used a gradient of zero, where none would leave it out of what workers average."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, bias: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.shape = bias.shape
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad, grad.new_zeros(ctx.shape)
