"""The search space: for each section of `RunConfig`, the values that a search may give to its fields.

A field with several values is searched. A field with a single value is fixed to it, and a field without values keeps
the value of the preset. Only fields that a configuration uses get a value: without a label graph, for example, the
number of neighbours is not a parameter. Standard library only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from sigrl_core.config import RunConfig
from sigrl_core.errors import ConfigError

FULL_LABEL_LOSSES = ("ranking", "pairwise", "bce", "focal", "asymmetric")
PARTIAL_LABEL_LOSSES = ("an", "an_ls", "wan", "epr", "role", "em", "em_apl", "em_pl", "ll_r")
"""Losses for completely and for partially labelled data. A search chooses among the losses of the preset's kind."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Numbers from `low` to `high`, uniformly distributed; with `log`, their logarithms are."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low <= self.high or (self.log and self.low <= 0):
            addition = " and above 0, as log is set" if self.log else ""
            raise ConfigError(f"space: from {self.low:g} to {self.high:g}; expected low <= high{addition}")


Domain = tuple[Any, ...] | Interval
"""A list of values, or an interval."""

Suggest = Callable[[str, Domain], Any]
"""Chooses a value: dotted name of a field, domain -> value."""


@dataclass(frozen=True, kw_only=True)
class BackboneSpace:
    frozen_blocks: tuple[int, ...] = ()
    """Empty by default, because cached features have a fixed depth."""


@dataclass(frozen=True, kw_only=True)
class GraphSpace:
    kind: tuple[str, ...] = ("none", "complete", "nearest", "cooccurrence")
    neighbours: tuple[int, ...] = (4, 8, 16)
    threshold: Interval = Interval(low=0.1, high=0.6)
    layers: tuple[int, ...] = (1, 2)
    heads: tuple[int, ...] = (1, 4)
    dropout: Interval = Interval(low=0.0, high=0.5)
    residual: tuple[bool, ...] = (False, True)
    propagation: tuple[bool, ...] = (False, True)


@dataclass(frozen=True, kw_only=True)
class ReconstructionSpace:
    enabled: tuple[bool, ...] = (True,)
    residual: tuple[bool, ...] = (False, True)
    rms_normalise: tuple[bool, ...] = (False, True)


@dataclass(frozen=True, kw_only=True)
class ScoringSpace:
    top_k_patches: tuple[int, ...] = (4, 8, 16)
    learn_scale: tuple[bool, ...] = ()
    initial_scale: Interval = Interval(low=5.0, high=40.0, log=True)


@dataclass(frozen=True, kw_only=True)
class LossSpace:
    kind: tuple[str, ...] = ()
    """Empty: the losses of the preset's kind, see `FULL_LABEL_LOSSES`."""
    distillation: Interval = Interval(low=0.0, high=1.0)
    expected_positives: Interval = Interval(low=1.0, high=5.0)
    label_smoothing: Interval = Interval(low=0.0, high=0.3)
    entropy_weight: Interval = Interval(low=0.01, high=0.5, log=True)
    pseudo_weight: Interval = Interval(low=0.2, high=1.0)
    pseudo_threshold: Interval = Interval(low=0.1, high=0.6)
    rejection: Interval = Interval(low=1e-4, high=1e-2, log=True)
    focal_gamma: Interval = Interval(low=0.5, high=4.0)
    asymmetric_gamma: Interval = Interval(low=1.0, high=6.0)
    asymmetric_margin: Interval = Interval(low=0.0, high=0.2)


@dataclass(frozen=True, kw_only=True)
class OptimSpace:
    lr: Interval = Interval(low=3e-4, high=1e-2, log=True)
    head_lr_scale: Interval = Interval(low=0.1, high=1.0, log=True)
    weight_decay: Interval = Interval(low=1e-3, high=0.2, log=True)


@dataclass(frozen=True, kw_only=True)
class TrainingSpace:
    label_keep_fraction: tuple[float, ...] = (0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """The domains of all fields that a search may change, by section of `RunConfig`."""

    backbone: BackboneSpace = field(default_factory=BackboneSpace)
    graph: GraphSpace = field(default_factory=GraphSpace)
    reconstruction: ReconstructionSpace = field(default_factory=ReconstructionSpace)
    scoring: ScoringSpace = field(default_factory=ScoringSpace)
    loss: LossSpace = field(default_factory=LossSpace)
    optim: OptimSpace = field(default_factory=OptimSpace)
    training: TrainingSpace = field(default_factory=TrainingSpace)

    def sample(self, base: RunConfig, suggest: Suggest) -> RunConfig:
        """Returns `base` with a suggested value for every field that is searched and used, in the order above.

        Raises:
            ConfigError: the values do not fit together.
        """
        run = base
        for section, name, domain in self._fields(base):
            if not _is_used(run, section, name) or domain == ():
                continue
            value = _only_value(domain) if _is_fixed(domain) else suggest(f"{section}.{name}", domain)
            run = replace(run, **{section: replace(getattr(run, section), **{name: value})})
        return run

    def domains(self, base: RunConfig) -> dict[str, Domain]:
        """Returns the domains of all fields with several values by dotted name, whether `base` uses them or not."""
        named = ((f"{section}.{name}", domain) for section, name, domain in self._fields(base))
        return {name: domain for name, domain in named if domain != () and not _is_fixed(domain)}

    def _fields(self, base: RunConfig) -> Iterator[tuple[str, str, Domain]]:
        for section in dataclasses.fields(self):
            space = getattr(self, section.name)
            for each in dataclasses.fields(space):
                domain = getattr(space, each.name)
                if (section.name, each.name) == ("loss", "kind"):
                    domain = domain or next(
                        (kinds for kinds in (FULL_LABEL_LOSSES, PARTIAL_LABEL_LOSSES) if base.loss.kind in kinds), ()
                    )
                yield section.name, each.name, domain


def contains(domain: Domain, value: Any) -> bool:
    """Returns whether a domain contains a value."""
    return domain.low <= value <= domain.high if isinstance(domain, Interval) else value in domain


def contains_all(domains: dict[str, Domain], values: dict[str, Any]) -> bool:
    """Returns whether every value, by dotted name of its field, lies in the domain of the field."""
    return all(name in domains and contains(domains[name], value) for name, value in values.items())


def _is_fixed(domain: Domain) -> bool:
    return domain.low == domain.high if isinstance(domain, Interval) else len(domain) == 1


def _only_value(domain: Domain) -> Any:
    return domain.low if isinstance(domain, Interval) else domain[0]


_LOSSES_WITH: dict[str, tuple[str, ...]] = {
    "expected_positives": ("epr", "role"),
    "label_smoothing": ("an_ls", "em_pl"),
    "entropy_weight": ("em", "em_apl", "em_pl"),
    "pseudo_weight": ("em_pl",),
    "pseudo_threshold": ("em_pl",),
    "rejection": ("ll_r",),
    "focal_gamma": ("focal",),
    "asymmetric_gamma": ("asymmetric",),
    "asymmetric_margin": ("asymmetric",),
}


def _is_used(run: RunConfig, section: str, name: str) -> bool:
    """Returns whether a field has an effect in a run."""
    if section == "graph" and name not in ("kind", "propagation"):
        kinds = {"neighbours": ("nearest", "cooccurrence"), "threshold": ("cooccurrence",)}
        return run.graph.kind in kinds.get(name, (run.graph.kind,)) and run.graph.kind != "none"
    if section == "reconstruction" and name != "enabled":
        return run.reconstruction.enabled
    if (section, name) == ("scoring", "initial_scale"):
        return run.scoring.learn_scale
    return section != "loss" or run.loss.kind in _LOSSES_WITH.get(name, (run.loss.kind,))
