"""Semantic decoupling and SVFR: what the patches say of each label, and the patches rebuilt from what the labels say.

Both modules weigh every patch for every label and channel by coefficients of one form (arXiv 2504.03801):

    A[b,p,c,:] = softmax over p, separately for each channel, of  W tanh(X[b,p,:] * Q[b,c,:]) + b

`pooled_coefficients` sums A * X over the patches, `summed_coefficients` sums A over the labels. A itself, B x P x C x D
numbers, never exists: tiles of a few labels of a few images are made, used and overwritten, and made again for the
backward pass. That costs a fourth matrix product where autograd has three, and wins because a tile stays in the cache.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sigrl_core.config import ReconstructionConfig

TILE_BYTES = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Bytes of one working tile, four are alive at a time. CPU: stays in cache (measured); GPU: fills the device."""


def labels_per_chunk(B: int, P: int, C: int, D: int, dtype: torch.dtype, device_type: str) -> tuple[int, int]:
    """(images, labels) of one tile: as many labels as fit, and more than one image only when all labels fit."""
    vectors = max(1, TILE_BYTES.get(device_type, TILE_BYTES["cuda"]) // (P * D * dtype.itemsize))
    labels = min(C, vectors)
    return min(B, max(1, vectors // C)), labels


def pooled_coefficients(
    patches_BPD: Float[Tensor, "B P D"], queries: Float[Tensor, "*B C D"], coef: nn.Linear
) -> Float[Tensor, "B C D"]:
    """sum_p A * X. `queries` is [C, D], the same for every image, or [B, C, D]. Computes in the dtype of `coef`."""
    dtype = coef.weight.dtype
    return _Coefficients.apply(patches_BPD.to(dtype), queries.to(dtype), coef.weight, coef.bias, True)  # type: ignore


def summed_coefficients(
    patches_BPD: Float[Tensor, "B P D"], queries: Float[Tensor, "*B C D"], coef: nn.Linear
) -> Float[Tensor, "B P D"]:
    """sum_c A. `queries` is [C, D], the same for every image, or [B, C, D]. Computes in the dtype of `coef`."""
    dtype = coef.weight.dtype
    return _Coefficients.apply(patches_BPD.to(dtype), queries.to(dtype), coef.weight, coef.bias, False)  # type: ignore


class _Coefficients(torch.autograd.Function):
    """Both reductions of A with exact gradients. The bias cancels in the softmax: it is not used, its gradient is zero.

    Under autocast the matrix products run in its dtype, everything else in the dtype of the weight.
    """

    @staticmethod
    def forward(ctx, X_BPD, Q, W_DD, bias_D, pool):  # pyright: ignore[reportIncompatibleMethodOverride]
        device = X_BPD.device.type
        ctx.pool, ctx.has_bias = pool, bias_D is not None
        ctx.product_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else W_DD.dtype
        with torch.autocast(device, enabled=False):
            tiles = _Tiles(X_BPD, Q, W_DD, ctx.product_dtype, count=2)
            out = X_BPD.new_empty(tiles.B, tiles.C, tiles.D) if pool else torch.zeros_like(X_BPD)
            for images, labels in tiles:
                X, _, _, A = tiles.coefficients(images, labels)
                if pool:
                    torch.sum(A.mul_(X), dim=2, out=out[images, labels])
                else:
                    out[images] += A.sum(1)
        ctx.save_for_backward(X_BPD, Q, W_DD, out if pool else None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):  # pyright: ignore[reportIncompatibleMethodOverride]
        X_BPD, Q, W_DD, pooled_BCD = ctx.saved_tensors
        with torch.autocast(X_BPD.device.type, enabled=False):
            tiles = _Tiles(X_BPD, Q, W_DD, ctx.product_dtype, count=4)
            grad_X, grad_Q, grad_W = torch.zeros_like(X_BPD), torch.zeros_like(Q), torch.zeros_like(W_DD)
            for images, labels in tiles:
                X, Q_tile, H, A = tiles.coefficients(images, labels)
                grad_Z, grad_H = tiles.buffers(A.shape)[2:]
                if ctx.pool:  # dA = g X, so dZ = A (dA - sum_p A dA) = A g (X - pooled)
                    torch.sub(X, pooled_BCD[images, labels, None], out=grad_Z)
                    grad_Z *= A.mul_(grad_out[images, labels, None])  # A g is also what X gets through the sum
                else:  # dA = g, so dZ = A (g - sum_p A g)
                    g = grad_out[images, None]
                    torch.sub(g, torch.mul(A, g, out=grad_Z).sum(2, keepdim=True), out=grad_Z)
                    grad_Z *= A
                tiles.backward_products(grad_Z, H, grad_H, grad_W)
                torch.ops.aten.tanh_backward.grad_input(grad_H, H, grad_input=grad_H)
                grad_X[images] += (A.addcmul_(grad_H, Q_tile) if ctx.pool else torch.mul(grad_H, Q_tile, out=A)).sum(1)
                grad_Q_tile = grad_H.mul_(X).sum(2)
                if Q.dim() == 2:
                    grad_Q[labels] += grad_Q_tile.sum(0)
                else:
                    grad_Q[images, labels] = grad_Q_tile
        return grad_X, grad_Q, grad_W, W_DD.new_zeros(len(W_DD)) if ctx.has_bias else None, None


class _Tiles:
    """Walks over tiles [images, labels, P, D] and owns the `count` buffers that all of them share."""

    def __init__(self, X_BPD: Tensor, Q: Tensor, W_DD: Tensor, product_dtype: torch.dtype, count: int) -> None:
        self.B, self.P, self.D = X_BPD.shape
        self.C = Q.shape[-2]
        self.X, self.Q, self.W = X_BPD, Q.expand(self.B, -1, -1), W_DD.to(product_dtype)
        self.images, self.labels = labels_per_chunk(self.B, self.P, self.C, self.D, X_BPD.dtype, X_BPD.device.type)
        self._buffers = X_BPD.new_empty(count, self.images * self.labels * self.P * self.D)

    def __iter__(self):
        for image in range(0, self.B, self.images):
            for label in range(0, self.C, self.labels):
                yield slice(image, image + self.images), slice(label, label + self.labels)

    def buffers(self, shape: torch.Size) -> list[Tensor]:
        return [buffer[: shape.numel()].view(shape) for buffer in self._buffers]

    def coefficients(self, images: slice, labels: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Patches and queries of the tile, H = tanh(X Q), and A; H and A fill the first two buffers."""
        X, Q = self.X[images, None], self.Q[images, labels, None]
        H, A = self.buffers(torch.Size((X.shape[0], Q.shape[1], self.P, self.D)))[:2]
        torch.mul(X, 2 * Q, out=H).sigmoid_().mul_(2).sub_(1)  # tanh x = 2 sigmoid 2x - 1, five times as fast on CPU
        self._product(H, self.W.t(), A)
        torch.softmax(A, dim=2, out=A)
        return X, Q, H, A

    def backward_products(self, grad_Z: Tensor, H: Tensor, grad_H: Tensor, grad_W: Tensor) -> None:
        """grad_H = grad_Z W;  grad_W += grad_Z^T H."""
        rows, H_rows = grad_Z.view(-1, self.D).to(self.W.dtype), H.view(-1, self.D).to(self.W.dtype)
        if self.W.dtype == grad_W.dtype:
            grad_W.addmm_(rows.t(), H_rows)
        else:
            grad_W += rows.t() @ H_rows
        self._product(grad_Z, self.W, grad_H)

    def _product(self, left: Tensor, right_DD: Tensor, out: Tensor) -> None:
        left, rows = left.view(-1, self.D), out.view(-1, self.D)
        if self.W.dtype == out.dtype:
            torch.mm(left, right_DD, out=rows)
        else:
            rows.copy_(left.to(self.W.dtype) @ right_DD)


class SemanticDecoupling(nn.Module):
    """S, one feature per label and image, drawn from the patches."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.coef = nn.Linear(dim, dim)

    def forward(self, patches_BPD: Float[Tensor, "B P D"], labels: Float[Tensor, "*B C D"]) -> Float[Tensor, "B C D"]:
        """`labels` are [C, D], the same for every image, or [B, C, D]."""
        return pooled_coefficients(patches_BPD, labels, self.coef)


def mix_channels(semantic_BCD: Float[Tensor, "B C D"], labels: Float[Tensor, "*B C D"]) -> Float[Tensor, "B C D"]:
    """O = S M with M = row_normalise(ReLU(S^T T)), the channels of an image that its labels tie together.

    The authors also divide by two norms before the ReLU; the normalisation of the rows cancels them.
    """
    mixing_BDD = F.normalize(F.relu(semantic_BCD.transpose(1, 2) @ labels), dim=-1)
    return semantic_BCD @ mixing_BDD


class Reconstruction(nn.Module):
    """SVFR: patches rebuilt from what semantics and label graph say of every label together.

    Published: R = X * sum_c A', queries Q = U [O ; G]. `config.residual` gives X + R P / C with W_r
    starting at zero, that is from the patches as they come; `config.unit_rms` brings O and G to the same size before U.
    """

    def __init__(self, dim: int, config: ReconstructionConfig) -> None:
        super().__init__()
        self.config = config
        self.fuse = nn.Linear(2 * dim, dim, bias=False)
        self.coef = nn.Linear(dim, dim)
        if config.residual:
            nn.init.zeros_(self.coef.weight)  # every coefficient 1/P: training starts from the patches as they come

    def forward(
        self,
        patches_BPD: Float[Tensor, "B P D"],
        mixed_BCD: Float[Tensor, "B C D"],
        graph: Float[Tensor, "*B C D"],
    ) -> Float[Tensor, "B P D"]:
        if self.config.unit_rms:
            mixed_BCD, graph = (F.normalize(x, dim=-1) * x.shape[-1] ** 0.5 for x in (mixed_BCD, graph))
        # The graph is the same for every image: each half of U by itself, nothing concatenated.
        for_mixed_DD, for_graph_DD = self.fuse.weight.chunk(2, dim=1)
        queries_BCD = F.linear(mixed_BCD, for_mixed_DD) + F.linear(graph, for_graph_DD)
        weight_BPD = summed_coefficients(patches_BPD, queries_BCD, self.coef)
        if self.config.residual:
            return patches_BPD + patches_BPD * weight_BPD * (patches_BPD.shape[1] / graph.shape[-2])
        return patches_BPD * weight_BPD
