"""How a hyperparameter search proceeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sigrl_core.config.checks import require


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Trials, objective, sampler and scheduler of a search. The values to try are in search.space.SearchSpace."""

    trials: int = 24
    """Number of trials; a finished search can be extended with a larger number."""
    objective: Literal["gzsl.map", "zsl.map", "map"] = "gzsl.map"
    """mAP on the validation images: of all labels, of the held-out labels, or of the trained labels."""
    held_out: float = 0.2
    """Share of the seen labels that trials treat as unseen. The really unseen labels are not used."""
    sampler: Literal["tpe", "random"] = "tpe"
    """`tpe` tries the preset first and then learns from the trials; `random` is a baseline for comparison."""
    scheduler: Literal["asha", "none"] = "asha"
    """`asha` stops trials early that perform worse than others (Li et al. 2020, arXiv 1810.05934)."""
    grace_period: int = 2
    """Number of epochs that every trial runs (asha). After one epoch, configurations that overfit look best."""
    reduction_factor: int = 3
    """One of this many trials continues at each rung; each rung is at this many times the epochs of the previous one
    (asha)."""
    warm_start: tuple[str, ...] = ()
    """Folders of earlier searches that the sampler learns from."""
    seed: int = 0
    """Seed of the sampler."""
    allow_enlarged: bool = False
    """Accepts shards whose short side is below the model's `image_size`; their images are enlarged."""

    def __post_init__(self) -> None:
        require(self.trials >= 1, "trials", self.trials, "1 or more")
        require(0 < self.held_out < 1, "held_out", self.held_out, "in (0, 1)")
        require(self.grace_period >= 1, "grace_period", self.grace_period, "1 or more")
        require(self.reduction_factor >= 2, "reduction_factor", self.reduction_factor, "2 or more")
