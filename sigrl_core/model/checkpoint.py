"""The checkpoint folder: everything that inference needs, as safetensors and JSON, without pickle::

    manifest.json         written last: kind, versions, vocabulary hash, sha256 of every other file
    weights.safetensors   `backbone.` both CLIP towers, `teacher.` the original CLIP above the frozen blocks, `head.`
    backbone.json         description of the CLIP architecture
    config.json           the RunConfig
    vocabulary.json       the labels of its training, seen and unseen
    label_edges.json      label edges, for label graphs that use edges from data or a file
    metrics.json          metrics of the training
    calibration.json      curves from scores to probabilities, after calibrate.py

The small CLIP of the built-in corpus has the same kind of folder, without a head (kind `clip`). The training state is
separate, see training/state.py.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sigrl_core import __version__
from sigrl_core.config import BackboneConfig, RunConfig
from sigrl_core.config.json import from_json, to_json
from sigrl_core.errors import CheckpointError, SigrlError, StorageError
from sigrl_core.io import storage
from sigrl_core.io.checksums import sha256_of
from sigrl_core.io.resumable_job import MANIFEST, PLAN
from sigrl_core.labels.edges import LabelEdges
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.model.backbone import (
    DESCRIPTION_FILE,
    WEIGHTS_FILE,
    WEIGHTS_PREFIX,
    Backbone,
    backbone_from_description,
    load_backbone_folder,
)
from sigrl_core.model.calibration import Calibration
from sigrl_core.model.model import SigRLModel

SCHEMA_VERSION = 1
METRICS_FILE = "metrics.json"
EDGES_FILE = "label_edges.json"
CALIBRATION_FILE = "calibration.json"
CheckpointKind = Literal["sigrl", "clip"]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint. Its model is in evaluation mode and on the CPU."""

    uri: str
    model: SigRLModel
    config: RunConfig
    metrics: dict[str, Any]
    calibration: Calibration | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        """The labels of its training, seen and unseen."""
        return self.model.vocabulary


def save_checkpoint(folder: str | Path, model: SigRLModel, config: RunConfig, metrics: dict[str, Any]) -> None:
    """Writes a checkpoint into a new local folder; the manifest is written last and marks it as complete."""
    files = {
        "config.json": to_json(config),
        "vocabulary.json": model.vocabulary.to_json(),
        METRICS_FILE: _metrics_json(metrics),
    }
    if model.edges is not None:
        files[EDGES_FILE] = model.edges.to_json()
    _write(Path(folder), "sigrl", model.backbone, model.state_dict(), files, model.vocabulary.hash)


def save_clip(folder: str | Path, backbone: Backbone) -> None:
    """Writes a CLIP without a head; `backbone.pretrained` accepts the folder."""
    weights = {WEIGHTS_PREFIX + name: value for name, value in backbone.state_dict().items()}
    _write(Path(folder), "clip", backbone, weights, {}, None)


def _write(
    folder: Path,
    kind: CheckpointKind,
    backbone: Backbone,
    weights: dict[str, Tensor],
    files: dict[str, str],
    vocabulary_hash: str | None,
) -> None:
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, partial / WEIGHTS_FILE)
        for name, text in {DESCRIPTION_FILE: json.dumps(backbone.description, indent=1) + "\n", **files}.items():
            (partial / name).write_text(text, encoding="utf-8")
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "kind": kind,
            "code_version": __version__,
            "vocabulary_hash": vocabulary_hash,
            "files": {path.name: sha256_of(path.read_bytes()) for path in sorted(partial.iterdir())},
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StorageError(
            f"{folder}: checkpoint cannot be written ({error}); free space or choose another --out"
        ) from error


def publish_checkpoint(folder: str, uri: str, history: list[dict[str, Any]]) -> None:
    """Copies a checkpoint to its published place, the manifest last.

    Args:
        folder: the checkpoint.
        uri: the published place, local or s3://.
        history: metrics of every epoch, also of later ones; replaces the history in the checkpoint.
    """
    manifest = storage.read_json(storage.join(folder, MANIFEST))
    metrics = storage.read_json(storage.join(folder, METRICS_FILE)) | {"history": history}
    for name in manifest["files"]:
        is_metrics = name == METRICS_FILE
        data = _metrics_json(metrics).encode() if is_metrics else storage.read_bytes(storage.join(folder, name))
        manifest["files"][name] = sha256_of(data)
        storage.write_bytes(storage.join(uri, name), data)
    storage.write_json(storage.join(uri, MANIFEST), manifest)
    storage.remove_unfinished(uri)  # partial files of a killed process


def add_calibration(uri: str, calibration: Calibration) -> None:
    """Writes a calibration into a checkpoint; the manifest is written last, so that a partial file is never read.

    Args:
        uri: `Checkpoint.uri`; local or s3://.
    """
    manifest = storage.read_json(storage.join(uri, MANIFEST))
    manifest["files"].pop(CALIBRATION_FILE, None)
    storage.write_json(storage.join(uri, MANIFEST), manifest)
    data = calibration.to_json().encode()
    storage.write_bytes(storage.join(uri, CALIBRATION_FILE), data)
    manifest["files"][CALIBRATION_FILE] = sha256_of(data)
    storage.write_json(storage.join(uri, MANIFEST), manifest)


def _metrics_json(metrics: dict[str, Any]) -> str:
    return json.dumps(metrics, indent=1, sort_keys=True) + "\n"


def load_checkpoint(uri: str) -> Checkpoint:
    """Loads and verifies a checkpoint folder, or the `checkpoint` folder of a training run.

    Raises:
        CheckpointError: missing, unfinished, altered, or a CLIP without a head.
    """
    with _local_copy(_locate(uri)) as (where, folder):
        kind, files = _verify(where, folder)
        if kind != "sigrl":
            raise CheckpointError(
                f"{where}: a CLIP without a SigRL head; train one on it (train.py --backbone.pretrained {uri})"
            )
        try:
            config = from_json(RunConfig, (folder / "config.json").read_text(encoding="utf-8"), f"{where}/config.json")
            vocabulary = Vocabulary.parse(
                (folder / "vocabulary.json").read_text(encoding="utf-8"), f"{where}/vocabulary.json"
            )
            description = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
            backbone = backbone_from_description(description, config.backbone)
            edges = None
            if EDGES_FILE in files:
                edges = LabelEdges.parse((folder / EDGES_FILE).read_text(encoding="utf-8"), f"{where}/{EDGES_FILE}")
            weights = load_file(folder / WEIGHTS_FILE)
            embeddings_VE = weights.get("embeddings_VE")
            model = SigRLModel(backbone, backbone.make_teacher(), config, vocabulary, edges, embeddings_VE)
            model.load_state_dict(weights)
            metrics = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
            calibration = None
            if CALIBRATION_FILE in files:  # a partial file is not listed
                text = (folder / CALIBRATION_FILE).read_text(encoding="utf-8")
                calibration = Calibration.parse(text, vocabulary, f"{where}/{CALIBRATION_FILE}")
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, SigrlError) as error:
            raise CheckpointError(
                f"{where}: cannot be loaded ({error}); train again or copy the folder again"
            ) from error
    return Checkpoint(uri=where, model=model.eval(), config=config, metrics=metrics, calibration=calibration)


def load_weights(folder: Path, model: SigRLModel) -> None:
    """Verifies a local checkpoint and loads its weights into a model of the same architecture.

    Raises:
        CheckpointError: a file is missing, altered, or of another model.
    """
    _verify(str(folder), folder)
    try:
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be loaded ({error}); choose a new --out") from error


def load_clip(folder: str | Path) -> Backbone:
    """Loads and verifies a CLIP folder that `save_clip` wrote."""
    _verify(str(folder), Path(folder))
    return load_backbone_folder(Path(folder), BackboneConfig(frozen_blocks=10**6))


def checkpoint_version(uri: str) -> str:
    """Returns the hash of a checkpoint's manifest, which contains the hashes of all its files.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    return sha256_of(storage.read_bytes(storage.join(_locate(uri), MANIFEST)))


def is_checkpoint(folder: str | Path) -> bool:
    """Returns whether a folder, local or s3://, contains a finished checkpoint."""
    return all(storage.exists(storage.join(str(folder), name)) for name in (MANIFEST, WEIGHTS_FILE))


def _locate(uri: str) -> str:
    for candidate in (uri, storage.join(uri, "checkpoint")):
        if is_checkpoint(candidate):
            return candidate
    if _is_training(uri):
        raise CheckpointError(f"{uri}: this training has not finished an epoch; run the same train.py command again")
    reason = "no checkpoint here" if storage.exists(uri) else "no such folder"
    raise CheckpointError(f"{uri}: {reason} (no {MANIFEST} with {WEIGHTS_FILE}); give the --out of train.py")


def _is_training(uri: str) -> bool:
    """Returns whether the folder is the --out of train.py; version 0.1.0 named its plan run.json."""
    plan = storage.join(uri, PLAN)
    return storage.exists(storage.join(uri, "run.json")) or (
        storage.exists(plan) and storage.read_json(plan).get("kind") == "training"
    )


def _verify(where: str, folder: Path) -> tuple[CheckpointKind, dict[str, str]]:
    """Returns the kind of a checkpoint and the hashes of its files, after all of them were checked."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        kind, files, version = manifest["kind"], dict(manifest["files"]), manifest["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{where}/{MANIFEST}: not the manifest of a checkpoint ({error!r})") from error
    if kind not in ("sigrl", "clip"):
        raise CheckpointError(f"{where}: holds {kind!r}, expected a checkpoint; give the --out of train.py")
    if version != SCHEMA_VERSION:
        raise CheckpointError(f"{where}: schema version {version}, this program reads {SCHEMA_VERSION}; train again")
    for name, expected in {WEIGHTS_FILE: "nothing", DESCRIPTION_FILE: "nothing", **files}.items():
        path = folder / name
        actual = sha256_of(path.read_bytes()) if path.is_file() else "missing"
        if actual != expected:
            raise CheckpointError(
                f"{where}/{name}: sha256 is {actual[:12]}, the manifest says {expected[:12]}; copy the folder again"
            )
    return kind, files


@contextmanager
def _local_copy(uri: str) -> Iterator[tuple[str, Path]]:
    """Yields the location and a local folder with its files, which is temporary for a remote checkpoint."""
    filesystem, path = storage.filesystem_for(uri)
    if filesystem.type_name == "local":
        yield uri, Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        for file in storage.list_files(uri):
            target = Path(folder) / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(storage.read_bytes(storage.join(uri, file.path)))
        yield uri, Path(folder)
