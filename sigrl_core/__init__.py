"""SigRL: tag images with your own labels, from a laptop to a Ray cluster.

The names below are the public API; each is imported at its first use, so that `import sigrl_core` imports neither
torch nor Ray::

    import sigrl_core as sigrl

    tagger = sigrl.load("runs/mine")
    tagger.tag("photo.jpg", labels=["dog", "beach"], top_k=3)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sigrl_core.api import Tagger, calibrate, evaluate, load, preprocess, serve, tag, train
    from sigrl_core.config import RunConfig
    from sigrl_core.config.presets import get_preset
    from sigrl_core.errors import SigrlError
    from sigrl_core.labels.vocabulary import Label, Vocabulary
    from sigrl_core.plugins import register_backbone, register_corpus, register_graph, register_loss, register_metric

__version__ = "0.2.0"

__all__ = [
    "Label",
    "RunConfig",
    "SigrlError",
    "Tagger",
    "Vocabulary",
    "calibrate",
    "evaluate",
    "get_preset",
    "load",
    "preprocess",
    "register_backbone",
    "register_corpus",
    "register_graph",
    "register_loss",
    "register_metric",
    "serve",
    "tag",
    "train",
]

_MODULES = {
    "Label": "sigrl_core.labels.vocabulary",
    "RunConfig": "sigrl_core.config",
    "SigrlError": "sigrl_core.errors",
    "Vocabulary": "sigrl_core.labels.vocabulary",
    "get_preset": "sigrl_core.config.presets",
}
"""Modules of the exported names that are neither in `api` nor in `plugins`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    default = "sigrl_core.plugins" if name.startswith("register_") else "sigrl_core.api"
    value = getattr(importlib.import_module(_MODULES.get(name, default)), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
