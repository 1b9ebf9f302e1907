"""Where a search looks: beside each part of `RunConfig`, which values its fields may take. Standard library only.

A field with several values is searched; one with a single value is fixed to it, and one without is left as the preset
has it. Only what a configuration uses is drawn for it: neighbours for no graph would be a parameter of nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

from sigrl_core.config import RunConfig
from sigrl_core.errors import ConfigError

ALL_LABELS_KNOWN = ("ranking", "pairwise", "bce", "focal", "asymmetric")
SOME_LABELS_KNOWN = ("an", "an_ls", "wan", "epr", "role", "em", "em_apl", "em_pl", "ll_r")
"""Losses by what their data says; a search stays among those that are of one kind with the preset's."""


@dataclass(frozen=True, kw_only=True)
class Between:
    """Any number from `low` to `high`, every order of magnitude as often as another with `log`."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low <= self.high or (self.log and self.low <= 0):
            more = " and above 0, as log is set" if self.log else ""
            raise ConfigError(f"space: from {self.low:g} to {self.high:g}; expected low <= high{more}")


Where = tuple[Any, ...] | Between
"""Values to choose among, or a range."""
Draw = Callable[[str, Where], Any]
"""Dotted name of a field and where its value lies -> the value."""


@dataclass(frozen=True, kw_only=True)
class BackboneSpace:
    frozen_blocks: tuple[int, ...] = ()
    """Left alone, since features are of one depth."""


@dataclass(frozen=True, kw_only=True)
class GraphSpace:
    kind: tuple[str, ...] = ("none", "complete", "nearest", "cooccurrence")
    neighbours: tuple[int, ...] = (4, 8, 16)
    threshold: Between = Between(low=0.1, high=0.6)
    layers: tuple[int, ...] = (1, 2)
    heads: tuple[int, ...] = (1, 4)
    dropout: Between = Between(low=0.0, high=0.5)
    residual: tuple[bool, ...] = (False, True)
    propagation: tuple[bool, ...] = (False, True)


@dataclass(frozen=True, kw_only=True)
class ReconstructionSpace:
    enabled: tuple[bool, ...] = (True,)
    residual: tuple[bool, ...] = (False, True)
    unit_rms: tuple[bool, ...] = (False, True)


@dataclass(frozen=True, kw_only=True)
class ScoringSpace:
    patches_kept: tuple[int, ...] = (4, 8, 16)
    learn_scale: tuple[bool, ...] = ()
    initial_scale: Between = Between(low=5.0, high=40.0, log=True)


@dataclass(frozen=True, kw_only=True)
class LossSpace:
    kind: tuple[str, ...] = ()
    """None: those of one kind with the preset's, see `ALL_LABELS_KNOWN`."""
    distillation: Between = Between(low=0.0, high=1.0)
    expected_positives: Between = Between(low=1.0, high=5.0)
    label_smoothing: Between = Between(low=0.0, high=0.3)
    entropy_weight: Between = Between(low=0.01, high=0.5, log=True)
    pseudo_weight: Between = Between(low=0.2, high=1.0)
    pseudo_threshold: Between = Between(low=0.1, high=0.6)
    rejection: Between = Between(low=1e-4, high=1e-2, log=True)
    focal_gamma: Between = Between(low=0.5, high=4.0)
    asymmetric_gamma: Between = Between(low=1.0, high=6.0)
    asymmetric_margin: Between = Between(low=0.0, high=0.2)


@dataclass(frozen=True, kw_only=True)
class OptimSpace:
    lr: Between = Between(low=3e-4, high=1e-2, log=True)
    head_rate: Between = Between(low=0.1, high=1.0, log=True)
    weight_decay: Between = Between(low=1e-3, high=0.2, log=True)


@dataclass(frozen=True, kw_only=True)
class TrainingSpace:
    label_fraction: tuple[float, ...] = (0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """What a search may change of a run."""

    backbone: BackboneSpace = field(default_factory=BackboneSpace)
    graph: GraphSpace = field(default_factory=GraphSpace)
    reconstruction: ReconstructionSpace = field(default_factory=ReconstructionSpace)
    scoring: ScoringSpace = field(default_factory=ScoringSpace)
    loss: LossSpace = field(default_factory=LossSpace)
    optim: OptimSpace = field(default_factory=OptimSpace)
    training: TrainingSpace = field(default_factory=TrainingSpace)

    def drawn(self, base: RunConfig, draw: Draw) -> RunConfig:
        """`base` with every field that is searched and used drawn anew; asks for them in the order above.

        Raises:
            ConfigError: values that do not go together.
        """
        run = base
        for part, name, where in self._fields(base):
            if not _used(run, part, name) or where == ():
                continue
            value = _only(where) if _is_fixed(where) else draw(f"{part}.{name}", where)
            run = replace(run, **{part: replace(getattr(run, part), **{name: value})})
        return run

    def searched(self, base: RunConfig) -> dict[str, Where]:
        """Fields that have several values, by dotted name, used or not."""
        named = ((f"{part}.{name}", where) for part, name, where in self._fields(base))
        return {name: where for name, where in named if where != () and not _is_fixed(where)}

    def of(self, run: RunConfig) -> dict[str, Any]:
        """What a run has where others would be drawn, as far as it lies inside."""
        found = {name: attrgetter(name)(run) for name in self.searched(run)}
        return {name: found[name] for name, where in self.searched(run).items() if holds(where, found[name])}

    def _fields(self, base: RunConfig) -> Iterator[tuple[str, str, Where]]:
        for part in dataclasses.fields(self):
            space = getattr(self, part.name)
            for each in dataclasses.fields(space):
                where = getattr(space, each.name)
                if (part.name, each.name) == ("loss", "kind"):
                    where = where or next(
                        (kinds for kinds in (ALL_LABELS_KNOWN, SOME_LABELS_KNOWN) if base.loss.kind in kinds), ()
                    )
                yield part.name, each.name, where


def holds(where: Where, value: Any) -> bool:
    """Whether a value lies there."""
    return where.low <= value <= where.high if isinstance(where, Between) else value in where


def _is_fixed(where: Where) -> bool:
    return where.low == where.high if isinstance(where, Between) else len(where) == 1


def _only(where: Where) -> Any:
    return where.low if isinstance(where, Between) else where[0]


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


def _used(run: RunConfig, part: str, name: str) -> bool:
    """Whether a field says anything in a run."""
    if part == "graph" and name not in ("kind", "propagation"):
        kinds = {"neighbours": ("nearest", "cooccurrence"), "threshold": ("cooccurrence",)}
        return run.graph.kind in kinds.get(name, (run.graph.kind,)) and run.graph.kind != "none"
    if part == "reconstruction" and name != "enabled":
        return run.reconstruction.enabled
    if (part, name) == ("scoring", "initial_scale"):
        return run.scoring.learn_scale
    return part != "loss" or run.loss.kind in _LOSSES_WITH.get(name, (run.loss.kind,))
