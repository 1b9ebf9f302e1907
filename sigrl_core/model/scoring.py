"""Local and global scores (arXiv 2504.03801).

Scores rank the labels that were asked together. They are not probabilities. As published both norms run over the labels
asked, so a score changes with the vocabulary; over the labels of a fixed reference it does not. Sums of D products are
taken in the labels' dtype even under autocast: neighbouring ranks are closer than bfloat16 tells apart.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def patch_fits(patches_BPD: Float[Tensor, "B P D"], labels: Float[Tensor, "*B C D"]) -> Float[Tensor, "B C P"]:
    """R . T, how well each patch fits a label; patches go row by row over the picture."""
    with torch.autocast(labels.device.type, enabled=False):
        return labels @ patches_BPD.to(labels.dtype).transpose(1, 2)


def local_scores(
    patches_BPD: Float[Tensor, "B P D"], labels: Float[Tensor, "*B C D"], patches_kept: int
) -> Float[Tensor, "B C"]:
    """Mean over the K = `patches_kept` patches (all of them where P < K) that fit a label best; not yet normalised.

    Ranks labels, is no probability; reconstructed patches make it depend on every label asked.
    """
    fit_BCP = patch_fits(patches_BPD, labels)
    kept = min(patches_kept, fit_BCP.shape[-1])
    return fit_BCP.topk(kept, dim=-1, sorted=False).values.mean(-1)


def global_scores(glob_BD: Float[Tensor, "B D"], labels_CD: Float[Tensor, "C D"]) -> Float[Tensor, "B C"]:
    """g . T, how well the whole image fits a label; not yet normalised.

    Ranks labels, is no probability; `combine` makes it depend on every label asked.
    """
    with torch.autocast(labels_CD.device.type, enabled=False):
        return glob_BD.to(labels_CD.dtype) @ labels_CD.t()


def over_norm(scores_BC: Float[Tensor, "B C"], reference_BR: Float[Tensor, "B R"]) -> Float[Tensor, "B C"]:
    """Divided by each image's norm over the labels of a reference; as published the labels asked are their own.

    A reference of zeros leaves zeros zeros.
    """
    return scores_BC / reference_BR.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def over_labels(scores_BC: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
    """Divided by their norm over the labels asked, so they depend on all of them; a row of zeros stays zeros."""
    return over_norm(scores_BC, scores_BC)


def combine(local_BC: Float[Tensor, "B C"], global_BC: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
    """(local + global) / 2 of normalised scores: ranks, is no probability; as published in [-1, 1].

    As published the whole vocabulary asked is in both norms: the same label scores differently in another company.
    """
    return (local_BC + global_BC) / 2
