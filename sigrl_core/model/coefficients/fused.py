"""Triton kernels for NVIDIA GPUs: tanh on the fly, tensor-core products with float32 sums, softmax on chip.

The forward pass stores only its result and, per label and channel, the logarithm of the softmax's denominator, from
which the backward pass recomputes A. The backward pass writes the gradient of Z and H = tanh(X Q) for a few labels at a
time; one library product gives the gradient of W from them, and one kernel the gradients of patches and queries.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportPossiblyUnboundVariable=false
# Triton's language has Python's syntax but not its types.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from sigrl_core.model.coefficients.chunked import product_dtype

BLOCK_P, BLOCK_D, BLOCK_K = 256, 64, 64
"""Maximum number of patches, channels and inner channels of a tile; the 196 patches of a ViT-B/16 fit into one."""
ROWS_P = 64
"""Patches of a tile in the kernel that sums the gradients of its inputs."""
CHUNK_BYTES = 1 << 27
"""Bytes that the backward pass writes for a few labels at a time."""
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # pyright: ignore[reportAttributeAccessIssue]
"""Whether Triton's interpreter runs, which multiplies the bit patterns of bfloat16."""


def reduce(X_BPD: Tensor, Q: Tensor, weights: tuple[Tensor, ...], pool: bool) -> Tensor:
    """Implements `coefficients.Reduce`. Under autocast the products use its dtype."""
    (W_DD,) = weights
    Q_BCD = Q.expand(len(X_BPD), -1, -1)
    return _Fused.apply(X_BPD.contiguous(), Q_BCD, W_DD, pool)  # type: ignore[return-value]


# ---- kernels ----
# Letters as in the paper; pointers are moved to their image first. Masks allow shapes that are no multiples of a tile.


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _dot(left, right, total):
    """Computes total + left right, in the dtype of total."""
    if _INTERPRETED:
        left, right = left.to(total.dtype), right.to(total.dtype)
    return tl.dot(left, right, total, out_dtype=total.dtype, input_precision="ieee")


@triton.jit
def _products(X, Q, W, p, d, P, D, Z: tl.constexpr, BLOCK_K: tl.constexpr):
    """Computes Z = tanh(X Q) W^T for the patches p and channels d of one image and label, summed in dtype `Z`."""
    z = tl.zeros([p.shape[0], d.shape[0]], Z)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(X + p[:, None] * D + k[None, :], mask=(p[:, None] < P) & (k[None, :] < D), other=0.0)
        q = tl.load(Q + k, mask=k < D, other=0.0)
        w = tl.load(W + d[None, :] * D + k[:, None], mask=(d[None, :] < D) & (k[:, None] < D), other=0.0)
        h = _tanh(x * q[None, :]).to(w.dtype)
        z = _dot(h, w, z)
    return z


@triton.jit
def _pool(
    X, Q, W, V, out, lse, P, C, D, q_image,
    Z: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Computes out[b,c,d] = sum_p A V[b,p,d] and lse[b,c,d], over tiles of patches with an online softmax."""
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    image, label = tl.program_id(0) // C, tl.program_id(0) % C
    X += image.to(tl.int64) * P * D
    V += image.to(tl.int64) * P * D
    Q += image.to(tl.int64) * q_image + label * D
    max_ = tl.full([BLOCK_D], float("-inf"), Z)
    denominator = tl.zeros([BLOCK_D], Z)
    numerator = tl.zeros([BLOCK_D], Z)
    for start in range(0, P, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        z = _products(X, Q, W, p, d, P, D, Z, BLOCK_K)
        z = tl.where(p[:, None] < P, z, float("-inf"))
        v = tl.load(V + p[:, None] * D + d[None, :], mask=(p[:, None] < P) & (d[None, :] < D), other=0.0)
        new_max = tl.maximum(max_, tl.max(z, 0))
        e = tl.exp(z - new_max[None, :])
        rescale = tl.exp(max_ - new_max)
        denominator = denominator * rescale + tl.sum(e, 0)
        numerator = numerator * rescale + tl.sum(e * v, 0)
        max_ = new_max
    at = tl.program_id(0).to(tl.int64) * D + d
    tl.store(out + at, numerator / denominator, mask=d < D)
    tl.store(lse + at, max_ + tl.log(denominator), mask=d < D)


@triton.jit
def _sum(
    X, Q, W, lse, out, P, C, D, q_image,
    WHOLE: tl.constexpr, Z: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Computes out[b,p,d] = sum_c A. With all patches in one tile (`WHOLE`) lse is written, else it is read."""
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    image = tl.program_id(2).to(tl.int64)
    X += image * P * D
    Q += image * q_image
    lse += image * C * D
    total = tl.zeros([BLOCK_P, BLOCK_D], Z)
    for label in range(0, C):
        z = _products(X, Q + label * D, W, p, d, P, D, Z, BLOCK_K)
        if WHOLE:
            z = tl.where(p[:, None] < P, z, float("-inf"))
            max_ = tl.max(z, 0)
            e = tl.exp(z - max_[None, :])
            denominator = tl.sum(e, 0)
            total += e / denominator[None, :]
            tl.store(lse + label * D + d, max_ + tl.log(denominator), mask=d < D)
        else:
            log_denominator = tl.load(lse + label * D + d, mask=d < D, other=0.0)
            total += tl.exp(z - log_denominator[None, :])
    in_tile = (p[:, None] < P) & (d[None, :] < D)
    tl.store(out + image * P * D + p[:, None] * D + d[None, :], total, mask=in_tile)


@triton.jit
def _gradient_of_products(
    X, Q, W, lse, grad, pooled, grad_Z, H, grad_X, first, last, P, C, D, q_image,
    POOL: tl.constexpr, Z: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Computes grad_Z and H [b, label - first, p, d] of a few labels, and with POOL the gradient of X through the sum.

    POOL: grad [b,c,d], pooled = sum_p A X [b,c,d].  Else: grad [b,p,d], pooled = sum_p A grad [b,c,d].
    """
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    image = tl.program_id(2).to(tl.int64)
    X += image * P * D
    Q += image * q_image
    label_offset = image * C * D
    patch_offsets = p[:, None] * D + d[None, :]
    in_tile = (p[:, None] < P) & (d[None, :] < D)
    x = tl.load(X + patch_offsets, mask=in_tile, other=0.0)
    if not POOL:
        g = tl.load(grad + image * P * D + patch_offsets, mask=in_tile, other=0.0)
    total = tl.zeros([BLOCK_P, BLOCK_D], Z)
    for label in range(first, last):
        z = _products(X, Q + label * D, W, p, d, P, D, Z, BLOCK_K)
        at = label_offset + label * D + d
        a = tl.exp(z - tl.load(lse + at, mask=d < D, other=0.0)[None, :])
        r = tl.load(pooled + at, mask=d < D, other=0.0)
        if POOL:
            a *= tl.load(grad + at, mask=d < D, other=0.0)[None, :]
            total += a
            grad_z = a * (x - r[None, :])
        else:
            grad_z = a * (g - r[None, :])
        q = tl.load(Q + label * D + d, mask=d < D, other=0.0)
        row = (image * (last - first) + label - first) * P * D
        tl.store(grad_Z + row + patch_offsets, grad_z.to(grad_Z.dtype.element_ty), mask=in_tile)
        tl.store(H + row + patch_offsets, _tanh(x * q[None, :]).to(H.dtype.element_ty), mask=in_tile)
    if POOL:
        grad_X_tile = grad_X + image * P * D + patch_offsets
        tl.store(grad_X_tile, tl.load(grad_X_tile, mask=in_tile, other=0.0) + total, mask=in_tile)


@triton.jit
def _gradient_of_inputs(
    grad_Z, X, Q, W, grad_X, grad_Q, first, last, P, C, D, q_image, gq_image,
    Z: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Computes grad_H = grad_Z W for a few labels, and the gradients of patches and queries through it."""
    k = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    image = tl.program_id(2).to(tl.int64)
    patch_offsets = p[:, None] * D + k[None, :]
    in_tile = (p[:, None] < P) & (k[None, :] < D)
    x = tl.load(X + image * P * D + patch_offsets, mask=in_tile, other=0.0)
    Q += image * q_image
    total = tl.zeros([BLOCK_P, BLOCK_D], Z)
    for label in range(first, last):
        rows = grad_Z + (image * (last - first) + label - first) * P * D
        grad_h = tl.zeros([BLOCK_P, BLOCK_D], Z)
        for start in range(0, D, BLOCK_K):
            d = start + tl.arange(0, BLOCK_K)
            grad_z = tl.load(rows + p[:, None] * D + d[None, :], mask=(p[:, None] < P) & (d[None, :] < D), other=0.0)
            w = tl.load(W + d[:, None] * D + k[None, :], mask=(d[:, None] < D) & (k[None, :] < D), other=0.0)
            grad_h = _dot(grad_z, w, grad_h)
        q = tl.load(Q + label * D + k, mask=k < D, other=0.0)
        h = _tanh(x * q[None, :])
        inner = grad_h * (1 - h * h)
        total += inner * q[None, :]
        tl.atomic_add(grad_Q + image * gq_image + label * D + k, tl.sum(inner * x, 0), mask=k < D)
    grad_X_tile = grad_X + image * P * D + patch_offsets
    tl.store(grad_X_tile, tl.load(grad_X_tile, mask=in_tile, other=0.0) + total, mask=in_tile)


# ---- the operator ----


class _Fused(torch.autograd.Function):
    """Both reductions of A with exact gradients."""

    @staticmethod
    def forward(ctx, X_BPD, Q_BCD, W_DD, pool):  # pyright: ignore[reportIncompatibleMethodOverride]
        W = W_DD.to(product_dtype(X_BPD.device.type, W_DD.dtype)).contiguous()
        launch = _Launch(X_BPD, Q_BCD)
        lse_BCD = X_BPD.new_empty(launch.B, launch.C, launch.D)
        if pool:
            out = launch.pool(W, X_BPD, lse_BCD)
        else:
            out = torch.empty_like(X_BPD)
            if not launch.whole:
                launch.pool(W, X_BPD, lse_BCD)
            launch.sum(W, lse_BCD, out)
        ctx.pool = pool
        ctx.save_for_backward(X_BPD, Q_BCD, W, lse_BCD, out if pool else None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):  # pyright: ignore[reportIncompatibleMethodOverride]
        X_BPD, Q_BCD, W, lse_BCD, pooled_BCD = ctx.saved_tensors
        grad_out, launch = grad_out.contiguous(), _Launch(X_BPD, Q_BCD)
        B, P, C, D = launch.B, launch.P, launch.C, launch.D
        pooled = pooled_BCD if ctx.pool else launch.pool(W, grad_out, torch.empty_like(lse_BCD))
        grad_X, grad_Q = torch.zeros_like(X_BPD), X_BPD.new_zeros(B, C, D)
        grad_W = X_BPD.new_zeros(D, D)
        labels = max(1, min(C, CHUNK_BYTES // (2 * B * P * D * W.element_size())))
        grad_Z, H = (W.new_empty(B * labels * P, D) for _ in range(2))
        for first in range(0, C, labels):
            last = min(C, first + labels)
            rows = B * (last - first) * P
            launch.gradient_of_products(W, lse_BCD, grad_out, pooled, grad_Z, H, grad_X, first, last, ctx.pool)
            grad_W += grad_Z[:rows].t() @ H[:rows]
            launch.gradient_of_inputs(grad_Z, W, grad_X, grad_Q, first, last)
        return grad_X, grad_Q, grad_W, None


class _Launch:
    """Shapes and grids of all kernels."""

    def __init__(self, X_BPD: Tensor, Q_BCD: Tensor) -> None:
        (self.B, self.P, self.D), self.C = X_BPD.shape, Q_BCD.shape[1]
        self.X, self.Q = X_BPD, Q_BCD if Q_BCD.stride()[1:] == (self.D, 1) else Q_BCD.contiguous()
        self.sums = tl.float64 if X_BPD.dtype == torch.float64 else tl.float32
        self.block_P = max(16, min(BLOCK_P, triton.next_power_of_2(self.P)))
        self.block_D, self.block_K = (
            max(16, min(max_size, triton.next_power_of_2(self.D))) for max_size in (BLOCK_D, BLOCK_K)
        )
        self.whole = self.block_P >= self.P
        self.channels = triton.cdiv(self.D, self.block_D)

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        return self.P, self.C, self.D, self.Q.stride(0)

    def _blocks(self, block_P: int | None = None) -> dict:
        return {
            "Z": self.sums,
            "BLOCK_P": block_P or self.block_P,
            "BLOCK_D": self.block_D,
            "BLOCK_K": self.block_K,
            "num_warps": 8,
        }

    def pool(self, W: Tensor, V_BPD: Tensor, lse_BCD: Tensor) -> Tensor:
        """Computes sum_p A V; fills lse."""
        out = self.X.new_empty(self.B, self.C, self.D)
        _pool[(self.B * self.C, self.channels)](self.X, self.Q, W, V_BPD, out, lse_BCD, *self._sizes, **self._blocks())
        return out

    def sum(self, W: Tensor, lse_BCD: Tensor, out: Tensor) -> None:
        grid = (self.channels, triton.cdiv(self.P, self.block_P), self.B)
        _sum[grid](self.X, self.Q, W, lse_BCD, out, *self._sizes, WHOLE=self.whole, **self._blocks())

    def gradient_of_products(self, W, lse, grad, pooled, grad_Z, H, grad_X, first, last, pool) -> None:
        grid = (self.channels, triton.cdiv(self.P, self.block_P), self.B)
        _gradient_of_products[grid](
            self.X, self.Q, W, lse, grad, pooled, grad_Z, H, grad_X, first, last, *self._sizes,
            POOL=pool, **self._blocks(),
        )  # fmt: skip

    def gradient_of_inputs(self, grad_Z, W, grad_X, grad_Q, first, last) -> None:
        block_P = min(ROWS_P, self.block_P)
        grid = (self.channels, triton.cdiv(self.P, block_P), self.B)
        _gradient_of_inputs[grid](
            grad_Z, self.X, self.Q, W, grad_X, grad_Q, first, last, *self._sizes, grad_Q.stride(0),
            **self._blocks(block_P),
        )  # fmt: skip
