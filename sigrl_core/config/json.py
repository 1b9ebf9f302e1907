"""Configurations to and from JSON, every key and type checked."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any, Literal

from sigrl_core.config.deprecated import FIELDS, rename_keys
from sigrl_core.errors import ConfigError


def to_json(config: Any) -> str:
    """The configuration as JSON text; `from_json` takes it back."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


Config = typing.TypeVar("Config")


def from_json(kind: type[Config], text: str, where: str) -> Config:
    """Reads a configuration back.

    Raises:
        ConfigError: not JSON, an unknown key, a value of the wrong type or out of range; names the dotted key.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not valid JSON ({error}); give the config.json of an earlier run") from error
    return from_dict(kind, values, where)


def from_dict(kind: type[Config], values: Any, where: str, prefix: str = "") -> Config:
    if not isinstance(values, dict):
        raise ConfigError(
            f"{where}: {prefix.rstrip('.') or 'the configuration'} must be an object of keys, found {values!r}"
        )
    values, hints = rename_keys(values, FIELDS.get(kind.__name__, {})), typing.get_type_hints(kind)
    if unknown := sorted(set(values) - set(hints)):
        raise ConfigError(f"{where}: unknown key {prefix}{unknown[0]}; known are {', '.join(hints)}")
    return kind(**{key: _checked(hints[key], value, where, prefix + key) for key, value in values.items()})


def _checked(hint: Any, value: Any, where: str, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where, key + ".")
    origin = typing.get_origin(hint)
    if origin is Literal:
        allowed: tuple = typing.get_args(hint)
        if value in allowed:
            return value
        raise ConfigError(f"{where}: {key} is {value!r}; expected one of {', '.join(map(repr, allowed))}")
    if origin is tuple:  # of any number of one type
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: {key} is {value!r}; expected a list")
        return tuple(_checked(typing.get_args(hint)[0], item, where, f"{key}[{i}]") for i, item in enumerate(value))
    kinds: tuple = typing.get_args(hint) if origin in (typing.Union, types.UnionType) else (origin or hint,)
    if any(value in typing.get_args(kind) for kind in kinds if typing.get_origin(kind) is Literal):
        return value
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if any(type(value) is kind for kind in kinds):
        return value
    expected = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise ConfigError(f"{where}: {key} is {value!r}; expected {expected}")
