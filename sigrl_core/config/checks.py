"""Checks of configuration values."""

from __future__ import annotations

from sigrl_core.errors import ConfigError
from sigrl_core.plugins import Registry


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
