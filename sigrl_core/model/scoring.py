"""Local and global scores (arXiv 2504.03801).

Scores rank the labels that were asked together. They are not probabilities, and both norms run over the label axis, so
a score changes with the vocabulary it is asked with. Sums of D products are taken in the labels' dtype even under
autocast: neighbouring ranks are closer than bfloat16 tells apart.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def local_scores(
    patches_BPD: Float[Tensor, "B P D"], labels: Float[Tensor, "*B C D"], patches_kept: int
) -> Float[Tensor, "B C"]:
    """Mean over the K = `patches_kept` patches (all of them where P < K) that fit a label best; not yet normalised.

    Ranks labels, is no probability; reconstructed patches make it depend on every label asked.
    """
    with torch.autocast(labels.device.type, enabled=False):
        fit_BCP = labels @ patches_BPD.to(labels.dtype).transpose(1, 2)
    kept = min(patches_kept, fit_BCP.shape[-1])
    return fit_BCP.topk(kept, dim=-1, sorted=False).values.mean(-1)


def global_scores(glob_BD: Float[Tensor, "B D"], labels_CD: Float[Tensor, "C D"]) -> Float[Tensor, "B C"]:
    """g . T, how well the whole image fits a label; not yet normalised.

    Ranks labels, is no probability; `combine` makes it depend on every label asked.
    """
    with torch.autocast(labels_CD.device.type, enabled=False):
        return glob_BD.to(labels_CD.dtype) @ labels_CD.t()


def over_labels(scores_BC: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
    """Divided by their norm over the labels asked, so they depend on all of them; a row of zeros stays zeros."""
    return F.normalize(scores_BC, dim=-1)


def combine(local_BC: Float[Tensor, "B C"], global_BC: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
    """(local + global) / 2 of scores that `over_labels` has normalised: in [-1, 1], ranks, is no probability.

    The whole vocabulary asked is in both norms: the same label scores differently in another company.
    """
    return (local_BC + global_BC) / 2
