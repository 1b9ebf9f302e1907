"""Local and global scores (arXiv 2504.03801).

Scores rank the labels of one vocabulary and are not probabilities. In the published model both norms run over the
labels of the vocabulary, so a score changes with the vocabulary; with norms over fixed reference labels it does not.
Sums of D products use the labels' dtype even under autocast, because bfloat16 cannot separate neighbouring ranks.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def patch_fits(patches_BPD: Float[Tensor, "B P D"], labels: Float[Tensor, "*B C D"]) -> Float[Tensor, "B C P"]:
    """Computes R . T, the similarity of each patch and label; patches are in row-major order of the image."""
    with torch.autocast(labels.device.type, enabled=False):
        return labels @ patches_BPD.to(labels.dtype).transpose(1, 2)


def local_scores(
    patches_BPD: Float[Tensor, "B P D"], labels: Float[Tensor, "*B C D"], top_k_patches: int
) -> Float[Tensor, "B C"]:
    """Averages the K = `top_k_patches` patches (all if P < K) most similar to a label; not yet normalised.

    Reconstructed patches make the result depend on the whole vocabulary.
    """
    fit_BCP = patch_fits(patches_BPD, labels)
    k = min(top_k_patches, fit_BCP.shape[-1])
    return fit_BCP.topk(k, dim=-1, sorted=False).values.mean(-1)


def global_scores(cls_BD: Float[Tensor, "B D"], labels_CD: Float[Tensor, "C D"]) -> Float[Tensor, "B C"]:
    """Computes g . T, the similarity of the whole image and a label; not yet normalised."""
    with torch.autocast(labels_CD.device.type, enabled=False):
        return cls_BD.to(labels_CD.dtype) @ labels_CD.t()


def normalise_by(scores_BC: Float[Tensor, "B C"], reference_BR: Float[Tensor, "B R"]) -> Float[Tensor, "B C"]:
    """Divides by each image's norm over reference labels; in the published model these are the labels themselves.

    A norm of zero leaves zeros.
    """
    return scores_BC / reference_BR.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def normalise_over_labels(scores_BC: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
    """Divides by each image's norm over the labels, so that a score depends on all of them; zeros stay zeros."""
    return normalise_by(scores_BC, scores_BC)


def combine(local_BC: Float[Tensor, "B C"], global_BC: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
    """Computes (local + global) / 2 of normalised scores; in [-1, 1] in the published model.

    The published norms run over the whole vocabulary: the same label has another score in another vocabulary.
    """
    return (local_BC + global_BC) / 2
