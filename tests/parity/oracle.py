"""SigRL once more, from its equations in loops over scalars, in float64; slow, and shares nothing with the package.

Weights come as a plain dict under the names of the reference file: semantic.coef, recon.fuse, recon.coef, gat1, gat2.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
from numpy.typing import NDArray

Weights = dict[str, NDArray]


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    return [power / sum(powers) for power in powers]


def coefficients(X: NDArray, Q: NDArray, W: NDArray, b: NDArray) -> NDArray:
    """A [P, C, D] of one image: softmax over p, per channel, of W tanh(x_p * q_c) + b."""
    P, D, C = len(X), len(W), len(Q)
    A = np.zeros((P, C, D))
    for c, d in product(range(C), range(D)):
        logits = [b[d] + sum(W[d, e] * math.tanh(X[p, e] * Q[c, e]) for e in range(D)) for p in range(P)]
        A[:, c, d] = softmax(logits)
    return A


def semantic(X: NDArray, T: NDArray, w: Weights) -> NDArray:
    """S [C, D] of one image."""
    A = coefficients(X, T, w["semantic.coef.weight"], w["semantic.coef.bias"])
    S = np.zeros(T.shape)
    for c, d in np.ndindex(*T.shape):
        S[c, d] = sum(A[p, c, d] * X[p, d] for p in range(len(X)))
    return S


def mixed(S: NDArray, T: NDArray) -> NDArray:
    """O [C, D] of one image: S times the row-normalised ReLU(S^T T)."""
    C, D = S.shape
    M, mix = np.zeros((D, D)), np.zeros((C, D))
    for d, e in product(range(D), range(D)):
        M[d, e] = max(0.0, sum(S[c, d] * T[c, e] for c in range(C)))
    for d in range(D):
        norm = math.sqrt(sum(M[d, e] ** 2 for e in range(D)))
        for e in range(D):
            M[d, e] = M[d, e] / norm if norm > 0 else 0.0
    for c, e in product(range(C), range(D)):
        mix[c, e] = sum(S[c, d] * M[d, e] for d in range(D))
    return mix


def gatv2(nodes: NDArray, W: NDArray, a: NDArray, heads: int, edges: NDArray | None = None) -> NDArray:
    """One layer, heads concatenated; an edge's attention weight is multiplied by it before they sum to one."""
    C, E = len(nodes), len(W) // heads
    out = np.zeros((C, len(W)))
    u = np.array([[sum(W[k, d] * node[d] for d in range(len(node))) for k in range(len(W))] for node in nodes])
    for h, i in product(range(heads), range(C)):
        own = range(h * E, (h + 1) * E)
        edge = np.ones(C) if edges is None else edges[i]
        hears = [j for j in range(C) if edge[j] > 0]
        logits = []
        for j in hears:
            sums = [u[i, k] + u[j, k] for k in own]
            logits.append(sum(a[0, n] * (s if s > 0 else 0.2 * s) for n, s in enumerate(sums)) + math.log(edge[j]))
        for weight, j in zip(softmax(logits), hears, strict=True):
            for k in own:
                out[i, k] += weight * u[j, k]
    return out


def graph_embed(T: NDArray, w: Weights, heads: int, edges: NDArray | None = None) -> NDArray:
    """G [C, D], dropout off."""
    hidden = gatv2(T, w["gat1.linear.weight"], w["gat1.attn.weight"], heads, edges)
    hidden = np.array([[h if h > 0 else math.expm1(h) for h in row] for row in hidden])
    return gatv2(hidden, w["gat2.linear.weight"], w["gat2.attn.weight"], 1, edges)


def rms_normalise(rows: NDArray) -> NDArray:
    """Rows scaled to a root mean square of one; a row of zeros stays zeros."""
    sizes = [math.sqrt(sum(x * x for x in row) / len(row)) for row in rows]
    return np.array([[x / size if size > 0 else 0.0 for x in row] for row, size in zip(rows, sizes, strict=True)])


def reconstructed(
    X: NDArray, mix: NDArray, G: NDArray, w: Weights, residual: bool = False, rms: bool = False
) -> NDArray:
    """R [P, D] of one image."""
    if rms:
        mix, G = rms_normalise(mix), rms_normalise(G)
    P, C, D = len(X), *mix.shape
    U = w["recon.fuse.weight"]
    Q = np.zeros((C, D))
    for c, d in np.ndindex(C, D):
        Q[c, d] = sum(U[d, e] * mix[c, e] + U[d, D + e] * G[c, e] for e in range(D))
    A = coefficients(X, Q, w["recon.coef.weight"], w["recon.coef.bias"])
    R = np.zeros((P, D))
    for p, d in np.ndindex(P, D):
        R[p, d] = X[p, d] * sum(A[p, c, d] for c in range(C))
        if residual:
            R[p, d] = X[p, d] + R[p, d] * P / C
    return R


def normalise_by(scores: list[float]) -> list[float]:
    norm = math.sqrt(sum(score**2 for score in scores))
    return [score / norm if norm > 0 else 0.0 for score in scores]


def scores(R: NDArray, g: NDArray, T: NDArray, kept: int) -> tuple[list[float], list[float], list[float]]:
    """Local and global score over their norms, and their mean, of one image."""
    local, overall = [], []
    for label in T:
        fits = sorted((sum(r * t for r, t in zip(patch, label, strict=True)) for patch in R), reverse=True)[:kept]
        local.append(sum(fits) / len(fits))
        overall.append(sum(x * t for x, t in zip(g, label, strict=True)))
    local, overall = normalise_by(local), normalise_by(overall)
    return local, overall, [(one + other) / 2 for one, other in zip(local, overall, strict=True)]


def ranking(scores_C: NDArray, states_C: NDArray, margin: float = 1.0) -> float:
    """Ranking loss of one image, pair by pair."""
    hinges = []
    for p, n in product(range(len(scores_C)), repeat=2):
        if states_C[p] == 1 and states_C[n] == -1:
            hinges.append(max(0.0, margin + scores_C[n] - scores_C[p]))
    return sum(hinges) / (sum(hinge > 0 for hinge in hinges) + 1e-8)
