"""The output folder of a training.

Its files::

    OUT/plan.json           configuration and data; a run with the same plan resumes, a run with another plan is refused
    OUT/metrics.jsonl       one line per epoch
    OUT/tensorboard/        the same as scalars; losses by step; a few images with the heat map of their best label
    OUT/checkpoint/         the best epoch, for evaluate.py, tag.py and serve.py; written after the last epoch
    OUT/manifest.json       hashes of checkpoint and data; written last
    OUT/state/              the files of Ray Train, for resuming
    OUT/not_finite.json     the images of the step whose loss was not finite, if that stopped the training
"""

from __future__ import annotations

import json
from typing import Any

from sigrl_core import __version__
from sigrl_core.config.deprecated import upgrade_plan
from sigrl_core.errors import CheckpointError, ConfigError
from sigrl_core.io import storage
from sigrl_core.io.checksums import with_checksum
from sigrl_core.io.resumable_job import MANIFEST, PLAN, is_occupied
from sigrl_core.model.checkpoint import checkpoint_version
from sigrl_core.training.run_log import read_metrics

OLD_PLAN = "run.json"
"""Name of the plan in version 0.1.0."""
ADDED_KEYS = ("validation_sha256",)
"""Keys that version 0.1.0 did not write; a plan without them is compared without them."""
BACKBONE = "backbone_sha256"
SHARDS = "shards"
"""Sub-folder of OUT that may exist before the training starts: shards that were made for it."""


def is_started(out: str, plan: dict[str, Any]) -> bool:
    """Returns whether the folder contains this training, finished or not.

    Raises:
        ConfigError: it contains another training, or other files.
    """
    if (stored := _read_plan(out)) is not None:
        stored.pop(BACKBONE, None)  # see `planned_backbone`
        stored = {key: plan[key] for key in ADDED_KEYS if key in plan} | stored
        if stored == plan:
            return True
        differing = sorted(flatten(stored).items() ^ flatten(plan).items())[0][0]
        raise ConfigError(
            f"{out}: holds a training with another {differing}; choose another --out or delete the folder"
        )
    if is_occupied(out, f"{SHARDS}/"):
        raise ConfigError(f"{out}: holds files of something else (no {PLAN} of a training); choose another --out")
    return False


def planned_backbone(out: str) -> dict[str, str]:
    """Returns the hash of the weights that the training in a folder started from; empty if none was recorded.

    It is no part of the comparison of plans, because a finished training does not load these weights again.
    """
    plan = _read_plan(out) or {}
    return {BACKBONE: plan[BACKBONE]} if BACKBONE in plan else {}


def write_plan(out: str, plan: dict[str, Any]) -> None:
    """Starts the folder of a training: creates it and writes its plan."""
    storage.make_folder(out)
    storage.write_json(storage.join(out, PLAN), plan)


def write_manifest(out: str, checkpoint: str, plan: dict[str, Any]) -> None:
    """Writes the manifest of a training whose checkpoint is published; does nothing if there is one."""
    where = storage.join(out, MANIFEST)
    if storage.exists(where):
        return
    manifest = {
        "kind": "training",
        "schema_version": 1,
        "code_version": __version__,
        "checkpoint": "checkpoint",
        "checkpoint_sha256": checkpoint_version(checkpoint),
        "epochs": len(read_metrics(out)),
        "data": plan["data"],
        "data_sha256": plan["data_sha256"],
    }
    storage.write_json(where, with_checksum(manifest))


def training_data(checkpoint: str) -> str:
    """Returns the shard folder that a checkpoint was trained on.

    Raises:
        CheckpointError: the checkpoint is not in the folder of its training, which has this information.
    """
    out = checkpoint.rstrip("/").rpartition("/")[0]
    if (plan := _read_plan(out)) is None:
        raise CheckpointError(
            f"{checkpoint}: the data it was trained on is unknown (no {out}/{PLAN}); give held-out images as data"
        )
    return plan["data"]


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Returns nested dictionaries as one: dotted name -> value as JSON."""
    if not isinstance(value, dict):
        return {prefix: json.dumps(value)}
    return {k: v for key, inner in value.items() for k, v in flatten(inner, f"{prefix}.{key}".lstrip(".")).items()}


def _read_plan(out: str) -> dict[str, Any] | None:
    """Reads the plan of a training, with the present names of its keys; returns None if the folder has none.

    The folders of other commands have a plan of the same name, with other keys.
    """
    for name in (PLAN, OLD_PLAN):
        if storage.exists(where := storage.join(out, name)):
            plan = {"kind": "training", **upgrade_plan("train")(storage.read_json(where))}
            return plan if plan["kind"] == "training" and "config" in plan else None
    return None
