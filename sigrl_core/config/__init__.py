"""Configuration: frozen dataclasses, checked when they are made. Standard library only."""

from sigrl_core.config.run import (
    BackboneConfig,
    GraphConfig,
    LossConfig,
    OptimConfig,
    ReconstructionConfig,
    RunConfig,
    ScoringConfig,
    TrainingConfig,
)
from sigrl_core.config.scale import Replicas, Resources, ScaleConfig
from sigrl_core.config.search import SearchConfig
from sigrl_core.config.stages import (
    CacheFeaturesConfig,
    CalibrateConfig,
    EvaluateConfig,
    LabelPolicy,
    PreprocessConfig,
    QuickstartConfig,
    ServeConfig,
    TagConfig,
)

__all__ = [
    "BackboneConfig",
    "CacheFeaturesConfig",
    "CalibrateConfig",
    "EvaluateConfig",
    "GraphConfig",
    "LabelPolicy",
    "LossConfig",
    "OptimConfig",
    "PreprocessConfig",
    "QuickstartConfig",
    "ReconstructionConfig",
    "Replicas",
    "Resources",
    "RunConfig",
    "ScaleConfig",
    "ScoringConfig",
    "SearchConfig",
    "ServeConfig",
    "TagConfig",
    "TrainingConfig",
]
