"""Checks of configuration values."""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path

from sigrl_core.errors import ConfigError
from sigrl_core.plugins import BACKBONES, Registry


def require(is_valid: bool, key: str, value: object, expected: str) -> None:
    """Raises ConfigError, with the key, its value and what was expected, unless the value is valid."""
    if not is_valid:
        raise ConfigError(f"{key} is {value!r}; expected {expected}")


def require_candidates(count: int | None, key: str) -> None:
    """Raises ConfigError unless a number of candidates is positive or None."""
    require(count is None or count >= 1, key, count, "1 or more, or None")


def require_registered(registry: Registry, name: str, *other_names: str) -> None:
    """Raises the registry's error unless a name is registered or one of `other_names`."""
    if name not in other_names and name not in registry:
        raise registry.unknown(name, *other_names)


def require_backbone(name: str, pretrained: str) -> None:
    """Raises ConfigError for an unknown backbone; open_clip, which imports torch, is not imported for that.

    Nothing is checked for a checkpoint folder as `pretrained`, which contains the name of its architecture.
    """
    open_clip = importlib.util.find_spec("open_clip")
    if name in BACKBONES or Path(pretrained).is_dir() or open_clip is None or open_clip.origin is None:
        return
    published = sorted(path.stem for path in Path(open_clip.origin).parent.glob("model_configs/*.json"))
    if published and name not in published:
        similar = difflib.get_close_matches(name, [each for each in published if each.startswith("ViT")], 5, 0.5)
        known = [*BACKBONES, *(similar or ("ViT-B-16", "ViT-L-14"))]
        raise ConfigError(f"backbone.name {name!r} is unknown; known are {', '.join(known)} and more ViTs of open_clip")
