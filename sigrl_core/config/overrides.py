"""Fields of a configuration given as keyword arguments in Python, checked like a JSON file."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from typing import Any, TypeVar

from sigrl_core.config.json import from_dict
from sigrl_core.config.run import RunConfig
from sigrl_core.config.scale import Resources, ScaleConfig
from sigrl_core.errors import ConfigError

ConfigT = TypeVar("ConfigT")


def take_fields(kind: type[Any], options: dict[str, Any]) -> dict[str, Any]:
    """Removes the options that are fields of a configuration, and returns them."""
    return {field.name: options.pop(field.name) for field in dataclasses.fields(kind) if field.name in options}


def config_from(kind: type[ConfigT], options: Mapping[str, Any], **given: Any) -> ConfigT:
    """Makes a configuration from options of a call and fields that the call itself sets.

    Raises:
        ConfigError: an unknown option, a value of the wrong type or out of range.
    """
    known = [field.name for field in dataclasses.fields(kind) if field.name not in given]  # type: ignore[arg-type]
    if unknown := [name for name in options if name not in known]:
        raise ConfigError(
            f"{unknown[0]} is no option here{_suggest(unknown[0], known)}; options are {', '.join(known)}"
        )
    values = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in options.items()}
    return from_dict(kind, {**given, **values}, kind.__name__)


def apply_overrides(
    run: RunConfig, scale: ScaleConfig, resources: Resources, overrides: Mapping[str, Any]
) -> tuple[RunConfig, ScaleConfig, Resources]:
    """Replaces fields of a run, of its workers and of how it runs on them.

    Args:
        overrides: name of a field that occurs once (`epochs`), dotted name of a field (`loss.kind`), or name of a part
            (`loss`) with the fields of it as a dict.

    Raises:
        ConfigError: an unknown or ambiguous name, a value of the wrong type or out of range.
    """
    parts = {"scale": scale, "resources": resources}
    values = {**dataclasses.asdict(run), **{name: dataclasses.asdict(part) for name, part in parts.items()}}
    for name, value in overrides.items():
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if name in values:
            fields = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
            if not isinstance(fields, Mapping):
                example = next(iter(values[name]))
                raise ConfigError(f"{name} is {value!r}; expected a dict of its fields, such as {{{example!r}: ...}}")
            values[name].update(fields)  # a wrong field is refused below
        else:
            part, field = _find(name, values)
            values[part][field] = value
    scale = from_dict(ScaleConfig, values.pop("scale"), "train", "scale.")
    resources = from_dict(Resources, values.pop("resources"), "train", "resources.")
    return from_dict(RunConfig, values, "train"), scale, resources


def _find(name: str, values: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """Returns part and field of a name."""
    part, dot, field = name.partition(".")
    if dot and part in values:
        return part, field
    parts = [part for part, fields in values.items() if name in fields]
    if len(parts) == 1:
        return parts[0], name
    if parts:
        dotted = " or ".join(f"{part}={{{name!r}: ...}}" for part in parts)
        raise ConfigError(f"{name} is a field of {' and '.join(parts)}; give {dotted}")
    known = [*values, *(field for fields in values.values() for field in fields)]
    raise ConfigError(f"{name} is no field of RunConfig, ScaleConfig or Resources{_suggest(name, known)}")


def _suggest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else ""
