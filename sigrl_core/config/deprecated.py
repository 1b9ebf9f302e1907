"""Old names of configuration fields and flags, and their present names. The only such table.

Version 0.1.0 wrote and accepted the old names; this version reads them. Three places use the table: the command line
(`rename_flags`), configurations and other JSON files (`rename_keys`, called by `config.json`), and the comparison of a
folder's plan with the plan of the present run (`PLANS`). Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, TypeVar

_ConfigT = TypeVar("_ConfigT", bound=Any)

RENAMED_PRESETS = {"clip_zero_shot": "published", "coco_zero_shot": "published"}

_RUN = {
    "graph.others": "graph.neighbour_weight",
    "graph.complete_up_to": "graph.max_complete_labels",
    "reconstruction.unit_rms": "reconstruction.rms_normalise",
    "scoring.patches_kept": "scoring.top_k_patches",
    "loss.estimator_rate": "loss.estimator_lr_scale",
    "optim.head_rate": "optim.head_lr_scale",
    "training.label_fraction": "training.label_keep_fraction",
    "training.hold_features": "training.cache_features_in_memory",
}

FIELDS: dict[str, dict[str, str]] = {
    "RunConfig": _RUN,
    "SearchSpace": _RUN,
    "PreprocessConfig": {"labels": "label_policy", "annotated": "annotation_scope"},
    "CalibrateConfig": {"part": "split", "goal": "criterion", "at": "target"},
    "TagConfig": {"rows_per_part": "rows_per_shard"},
    "SearchConfig": {"grace_epochs": "grace_period", "reduction": "reduction_factor"},
    "ScaleConfig": {"pieces": "micro_batches"},
    "ServeConfig": {
        "models_at_once": "max_loaded_models",
        "open_to_everyone": "allow_anonymous",
        "follow_seconds": "reload_interval_s",
        "max_held_bytes": "max_inflight_bytes",
        "max_waiting": "max_pending_images",
    },
    "Replicas": {
        "least": "min_replicas",
        "most": "max_replicas",
        "cpus": "cpus_per_worker",
        "gpus": "gpus_per_worker",
    },
    "Calibration": {"goal": "criterion", "held_out.pictures": "held_out.images"},
}
"""Class -> old name -> new name, both dotted."""


def _below(prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    return {f"{prefix}.{old}": f"{prefix}.{new}" for old, new in names.items()}


PLANS: dict[str, dict[str, str]] = {
    "preprocess": FIELDS["PreprocessConfig"],
    "cache_features": {"rows_per_part": "rows_per_shard"},
    "train": _below("config", _RUN),
    "tune": {**FIELDS["SearchConfig"], **_below("base", _RUN), **_below("space", _RUN)},
    "tag": FIELDS["TagConfig"],
}
"""Command -> old key -> new key of the plan.json that a folder of this command keeps."""


def upgrade_plan(command: str, added: Mapping[str, Any] | None = None) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that renames the old keys of a plan of this command and adds new ones; it can be pickled.

    Args:
        command: name of the command.
        added: values of keys that version 0.1.0 did not write, for plans without them.
    """
    return partial(_upgrade, names=PLANS[command], added=added or {})


def _upgrade(plan: dict[str, Any], names: Mapping[str, str], added: Mapping[str, Any]) -> dict[str, Any]:
    renamed = rename_keys(plan, names)
    return _stored_images_of_0_1(plan) | renamed | {key: value for key, value in added.items() if key not in renamed}


def _stored_images_of_0_1(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What version 0.1.0 did without recording it: chroma followed from the quality. Empty for other plans."""
    if "quality" not in plan or "chroma" in plan:
        return {}
    return {"chroma": "4:4:4" if plan["quality"] >= 95 else "4:2:0", "long_side": "nearest"}


def keep_defaults_of_0_1(config: _ConfigT, plan: Mapping[str, Any]) -> _ConfigT:
    """Changes the fields of a PreprocessConfig that have their default to those of a folder that 0.1.0 started.

    The defaults of stored images changed after 0.1.0, so that the command which started a folder has other values now.

    Args:
        plan: the folder's plan as it was written; one of a later version changes nothing.
    """
    if not (unrecorded := _stored_images_of_0_1(plan)):
        return config
    recorded = {"short_side": plan["short_side"], "quality": plan["quality"], **unrecorded}
    defaults = {field.name: field.default for field in fields(config)}
    return replace(config, **{k: v for k, v in recorded.items() if getattr(config, k) == defaults[k]})


_WORKERS = {"workers": "num_workers"}
_FLAGS: dict[str, dict[str, str]] = {
    "preprocess": {**FIELDS["PreprocessConfig"], **_WORKERS},
    "cache_features": _WORKERS,
    "train": {
        **_RUN,
        **_below("scale", FIELDS["ScaleConfig"]),
        "scale.workers": "num_workers",
        "scale.min_workers": "min_workers",
        "scale.cpus_per_worker": "cpus_per_worker",
    },
    "tune": {**_RUN, **_below("space", _RUN), **FIELDS["SearchConfig"], **_WORKERS},
    "evaluate": _WORKERS,
    "calibrate": FIELDS["CalibrateConfig"],
    "tag": {**FIELDS["TagConfig"], **_WORKERS},
    "serve": {**FIELDS["ServeConfig"], **FIELDS["Replicas"]},
    "quickstart": _WORKERS,
}
_SWITCHES = {
    "train": {"--scale.gpus": "--gpus-per-worker 1", "--scale.no-gpus": "--gpus-per-worker 0"},
    "evaluate": {"--gpus": "--gpus-per-worker 1", "--no-gpus": "--gpus-per-worker 0"},
    "cache_features": {"--gpus": "--gpus-per-worker 1", "--no-gpus": "--gpus-per-worker 0"},
}
"""Old flags without a value whose successor has one."""


_PRESENT_FLAGS = ("--no-labels",)
"""Flags that have the negative form of an old flag which had none."""


def flags_of(command: str) -> dict[str, str]:
    """Old flag -> the flag that replaces it, for one command; a replacement may bring its value."""
    flags = {}
    for old, new in _FLAGS.get(command, {}).items():
        flags[_flag(old)] = _flag(new)
        if (negative := _flag(old, "no-")) not in _PRESENT_FLAGS:
            flags[negative] = _flag(new, "no-")  # the negative form of a boolean
    return {**flags, **_SWITCHES.get(command, {})}


def _flag(field: str, negation: str = "") -> str:
    *sections, name = field.replace("_", "-").split(".")
    return "--" + ".".join([*sections, negation + name])


def rename_flags(command: str, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Replaces old flags of a command.

    Returns:
        The arguments with the present flags, and one message for each replacement.
    """
    flags, renamed, messages = flags_of(command), list[str](), list[str]()
    for argument in arguments:
        name, equals, value = argument.partition("=")
        replacement = _replacement(name.replace("_", "-"), flags)
        if replacement is None:
            renamed.append(argument)
        else:
            renamed += [replacement + equals + value] if equals else replacement.split()
            messages.append(f"{name} is deprecated; use {replacement}")
    return renamed, messages


def _replacement(name: str, flags: Mapping[str, str]) -> str | None:
    """The successor of a flag, or of the field that a flag `--field.part` belongs to."""
    if name in flags:
        return flags[name]
    field, dot, part = name.rpartition(".")
    return flags[field] + dot + part if field in flags else None


def rename_keys(values: Any, names: Mapping[str, str]) -> Any:
    """Renames dotted keys of nested JSON objects; keeps the order of keys. A present name that is there wins.

    Args:
        values: what was read; returned as it is where it is no object.
        names: old -> new, both dotted and in the same section.
    """
    if not isinstance(values, dict):
        return values
    renamed = dict(values)
    sections: dict[str, dict[str, str]] = {}
    for old, new in names.items():
        section, dot, inner = old.partition(".")
        if dot:
            sections.setdefault(section, {})[inner] = new.partition(".")[2]
        elif old in renamed and new not in renamed:
            renamed = {new if key == old else key: value for key, value in renamed.items()}
    for section, inner_names in sections.items():
        if section in renamed:
            renamed[section] = rename_keys(renamed[section], inner_names)
    return renamed
