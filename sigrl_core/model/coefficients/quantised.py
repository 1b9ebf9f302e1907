"""8-bit integer products for tagging, on CPUs with VNNI instructions; without gradients.

H = tanh(X Q) is in [-1, 1] and uses 127 levels on each side without a scale; every row of W has its own scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sigrl_core.model.coefficients.chunked import LOG2_E, make_buffer, reduce_tiles, softmax2_

LEVELS = 127
"""Quantisation levels on each side of 0."""


def reduce(X_BPD: Tensor, Q: Tensor, weights: tuple[Tensor, ...], pool: bool) -> Tensor:
    """Implements `coefficients.Reduce`."""
    (W_DD,) = weights
    step_D = W_DD.abs().amax(1).clamp(min=torch.finfo(W_DD.dtype).tiny) / LEVELS
    codes_of_W = (W_DD / step_D[:, None]).round_().to(torch.int8).t()
    scale_D, offset = step_D * (LOG2_E / LEVELS), X_BPD.new_tensor(-LEVELS)
    Q_BCD = Q.expand(len(X_BPD), -1, -1)
    buffers = [make_buffer(X_BPD, Q, dtype) for dtype in (X_BPD.dtype, torch.int8, torch.int32)]

    def coefficients(images: slice, labels: slice) -> Tensor:
        X, Q_tile = X_BPD[images, None], Q_BCD[images, labels, None]
        shape = torch.Size((*Q_tile.shape[:2], *X.shape[2:]))
        H, codes, Z = (buffer[: shape.numel()].view(shape) for buffer in buffers)
        torch.mul(X, 2 * Q_tile, out=H).sigmoid_()
        codes.copy_(torch.add(offset, H, alpha=2 * LEVELS, out=H).round_())  # tanh x = 2 sigmoid 2x - 1
        torch.ops.aten._int_mm.out(codes.view(-1, shape[-1]), codes_of_W, out=Z.view(-1, shape[-1]))
        return softmax2_(torch.mul(Z, scale_D, out=H))

    return reduce_tiles(X_BPD, Q, pool, coefficients)
