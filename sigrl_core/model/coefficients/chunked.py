"""PyTorch code for any device that computes A in tiles of a few labels and images, and again in the backward pass.

Recomputing costs a fourth matrix product where autograd has three; it is still faster, because a tile stays in cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOG2_E = math.log2(math.e)
TILE_BYTES = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Bytes of one tile; four are in memory at a time. CPU: fits the cache (measured); GPU: fills the device."""


def reduce(X_BPD: Tensor, Q: Tensor, weights: tuple[Tensor, ...], pool: bool) -> Tensor:
    """Implements `coefficients.Reduce`. Under autocast the products use its dtype, the rest that of the weights."""
    return _Chunked.apply(X_BPD, Q, pool, *weights)  # type: ignore[return-value]


def product_dtype(device_type: str, otherwise: torch.dtype) -> torch.dtype:
    """Returns the dtype of autocast if it is on, else `otherwise`."""
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else otherwise


def tile_size(B: int, P: int, C: int, D: int, dtype: torch.dtype, device_type: str) -> tuple[int, int]:
    """Returns (images, labels) of one tile: as many labels as fit, and several images only if all labels fit."""
    vectors = max(1, TILE_BYTES.get(device_type, TILE_BYTES["cuda"]) // (P * D * dtype.itemsize))
    labels = min(C, vectors)
    return min(B, max(1, vectors // C)), labels


def tiles(X_BPD: Tensor, Q: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yields the images and labels of each tile."""
    (B, P, D), C = X_BPD.shape, Q.shape[-2]
    images, labels = tile_size(B, P, C, D, X_BPD.dtype, X_BPD.device.type)
    for image in range(0, B, images):
        for label in range(0, C, labels):
            yield slice(image, image + images), slice(label, label + labels)


def reduce_tiles(X_BPD: Tensor, Q: Tensor, pool: bool, coefficients: Callable[[slice, slice], Tensor]) -> Tensor:
    """Reduces the A [images, labels, P, D] of each tile, which is overwritten, over patches or over labels."""
    out = X_BPD.new_empty(len(X_BPD), *Q.shape[-2:]) if pool else torch.zeros_like(X_BPD)
    for images, labels in tiles(X_BPD, Q):
        A = coefficients(images, labels)
        if pool:
            torch.sum(A.mul_(X_BPD[images, None]), dim=2, out=out[images, labels])
        else:
            out[images] += A.sum(1)
    return out


class _Chunked(torch.autograd.Function):
    """Both reductions of A with exact gradients."""

    @staticmethod
    def forward(ctx, X_BPD, Q, pool, *weights):  # pyright: ignore[reportIncompatibleMethodOverride]
        device = X_BPD.device.type
        ctx.pool, ctx.product_dtype = pool, product_dtype(device, X_BPD.dtype)
        with torch.autocast(device, enabled=False):
            tile = _Tile(X_BPD, Q, weights, ctx.product_dtype, count=2)
            out = reduce_tiles(X_BPD, Q, pool, lambda images, labels: tile.coefficients(images, labels)[-1])
        ctx.save_for_backward(X_BPD, Q, out if pool else None, *weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):  # pyright: ignore[reportIncompatibleMethodOverride]
        X_BPD, Q, pooled_BCD, *weights = ctx.saved_tensors
        with torch.autocast(X_BPD.device.type, enabled=False):
            tile = _Tile(X_BPD, Q, weights, ctx.product_dtype, count=4)
            grad_X, grad_Q = torch.zeros_like(X_BPD), torch.zeros_like(Q)
            grad_weights = [torch.zeros_like(weight) for weight in weights]
            for images, labels in tiles(X_BPD, Q):
                X, Q_tile, H, inputs, A = tile.coefficients(images, labels)
                grad_Z, grad_H = tile.buffers(A.shape)[2:]
                if ctx.pool:  # dA = g X, so dZ = A (dA - sum_p A dA) = A g (X - pooled)
                    torch.sub(X, pooled_BCD[images, labels, None], out=grad_Z)
                    grad_Z *= A.mul_(grad_out[images, labels, None])  # A g is also the gradient of X through the sum
                else:  # dA = g, so dZ = A (g - sum_p A g)
                    g = grad_out[images, None]
                    torch.sub(g, torch.mul(A, g, out=grad_Z).sum(2, keepdim=True), out=grad_Z)
                    grad_Z *= A
                tile.backward_products(grad_Z, inputs, grad_H, grad_weights)
                torch.ops.aten.tanh_backward.grad_input(grad_H, H, grad_input=grad_H)
                grad_X[images] += (A.addcmul_(grad_H, Q_tile) if ctx.pool else torch.mul(grad_H, Q_tile, out=A)).sum(1)
                grad_Q_tile = grad_H.mul_(X).sum(2)
                if Q.dim() == 2:
                    grad_Q[labels] += grad_Q_tile.sum(0)
                else:
                    grad_Q[images, labels] = grad_Q_tile
        return grad_X, grad_Q, None, *grad_weights


def make_buffer(X_BPD: Tensor, Q: Tensor, dtype: torch.dtype) -> Tensor:
    """Makes a buffer for the largest tile, which is the first."""
    images, labels = next(tiles(X_BPD, Q))
    return X_BPD.new_empty(X_BPD[images].numel() * (labels.stop - labels.start), dtype=dtype)


def softmax2_(Z: Tensor) -> Tensor:
    """Computes the softmax over patches in place, of logits times log2(e): exp2 takes a fourth of exp's time on CPU."""
    Z.sub_(Z.amax(2, keepdim=True)).exp2_()
    return Z.div_(Z.sum(2, keepdim=True))


class _Tile:
    """The computation of one tile [images, labels, P, D], in `count` buffers that all tiles share."""

    def __init__(self, X_BPD: Tensor, Q: Tensor, weights, product_dtype: torch.dtype, count: int) -> None:
        self.X, self.Q = X_BPD, Q.expand(len(X_BPD), -1, -1)
        self.weights = [weight.to(product_dtype) for weight in weights]
        self.left = (weights[0] * LOG2_E).to(product_dtype)
        self._buffers = [make_buffer(X_BPD, Q, X_BPD.dtype) for _ in range(count)]

    def buffers(self, shape: torch.Size) -> list[Tensor]:
        return [buffer[: shape.numel()].view(shape) for buffer in self._buffers]

    def coefficients(self, images: slice, labels: slice) -> tuple[Tensor, Tensor, Tensor, list[Tensor], Tensor]:
        """Computes patches and queries of the tile, H = tanh(X Q), the inputs of the factors of W, and A.

        H and A are in the first two buffers.
        """
        X, Q = self.X[images, None], self.Q[images, labels, None]
        H, A = self.buffers(torch.Size((*Q.shape[:2], *X.shape[2:])))[:2]
        torch.mul(X, 2 * Q, out=H).sigmoid_().mul_(2).sub_(1)  # tanh x = 2 sigmoid 2x - 1, five times as fast on CPU
        inputs = [H.view(-1, H.shape[-1]).to(self.left.dtype)]
        for weight in self.weights[:0:-1]:
            inputs.append(inputs[-1] @ weight.t())
        _product(inputs[-1], self.left.t(), A)
        return X, Q, H, inputs, softmax2_(A)

    def backward_products(
        self, grad_Z: Tensor, inputs: list[Tensor], grad_H: Tensor, grad_weights: list[Tensor]
    ) -> None:
        """Fills grad_H = grad_Z W and adds grad_Z^T H to the gradient of W, for Z = H W^T, factor by factor."""
        grad = grad_Z.view(-1, grad_Z.shape[-1]).to(self.left.dtype)
        for grad_weight, weight, rows in zip(grad_weights, self.weights, reversed(inputs), strict=True):
            if grad.dtype == grad_weight.dtype:
                grad_weight.addmm_(grad.t(), rows)
            else:
                grad_weight += grad.t() @ rows
            if weight is self.weights[-1]:
                _product(grad, weight, grad_H)
            else:
                grad = grad @ weight


def _product(rows: Tensor, right: Tensor, out: Tensor) -> None:
    out = out.view(-1, right.shape[1])
    if rows.dtype == out.dtype:
        torch.mm(rows, right, out=out)
    else:
        out.copy_(rows @ right)
