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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from sigrl_core import __version__
from sigrl_core.config import BackboneConfig, RunConfig
from sigrl_core.config.json import from_json, to_json
from sigrl_core.errors import CheckpointError, SigrlError, StorageError
from sigrl_core.io import storage
from sigrl_core.io.checksums import Pinned, sha256_of
from sigrl_core.io.resumable_job import MANIFEST, PLAN, describe_folder
from sigrl_core.labels.edges import LabelEdges
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.model.backbone import (
    DESCRIPTION_FILE,
    WEIGHTS_FILE,
    WEIGHTS_PREFIX,
    Backbone,
    backbone_from_description,
    backbone_from_files,
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
    """A loaded checkpoint. Its model is in evaluation mode and on the CPU.

    Attributes:
        sha256: hash of the manifest that was read, which contains the hashes of the files that were loaded; see
            `checkpoint_version`. Empty for a model that was made in memory.
    """

    uri: str
    model: SigRLModel
    config: RunConfig
    metrics: dict[str, Any]
    calibration: Calibration | None = None
    sha256: str = ""

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

    Raises:
        CheckpointError: the checkpoint is not finished, or a file is altered.
        StorageError: the published place cannot be written.
    """
    source = _read_files(folder)
    metrics = json.loads(source.files[METRICS_FILE]) | {"history": history}
    files = {**source.files, METRICS_FILE: _metrics_json(metrics).encode()}
    for name, data in files.items():
        storage.write_bytes(storage.join(uri, name), data)
    manifest = {**source.manifest, "files": {name: sha256_of(data) for name, data in files.items()}}
    storage.write_json(storage.join(uri, MANIFEST), manifest)
    storage.remove_unfinished(uri)  # partial files of a killed process


def add_calibration(uri: str, calibration: Calibration, expected: Pinned | None = None) -> str:
    """Writes a calibration into a checkpoint; the manifest is written last, so that a partial file is never read.

    Args:
        uri: `Checkpoint.uri`; local or s3://.
        expected: hash of the checkpoint whose scores were calibrated.

    Returns:
        The new hash of the checkpoint.

    Raises:
        CheckpointError: the folder holds another checkpoint than `expected`; nothing is written.
    """
    text = storage.read_bytes(storage.join(uri, MANIFEST))
    if expected is not None:
        expected.check(uri, "model", sha256_of(text), CheckpointError)
    manifest = json.loads(text)
    manifest["files"].pop(CALIBRATION_FILE, None)
    storage.write_json(storage.join(uri, MANIFEST), manifest)
    data = calibration.to_json().encode()
    storage.write_bytes(storage.join(uri, CALIBRATION_FILE), data)
    manifest["files"][CALIBRATION_FILE] = sha256_of(data)
    storage.write_json(storage.join(uri, MANIFEST), manifest)
    return checkpoint_version(uri)


def _metrics_json(metrics: dict[str, Any]) -> str:
    return json.dumps(metrics, indent=1, sort_keys=True) + "\n"


def load_checkpoint(uri: str, expected: Pinned | None = None) -> Checkpoint:
    """Loads and verifies a checkpoint folder, or the `checkpoint` folder of a training run.

    Args:
        uri: the folder, local or s3://.
        expected: hash that a plan recorded for this checkpoint, see `Checkpoint.sha256`.

    Raises:
        CheckpointError: missing, unfinished, altered, another one than `expected`, or a CLIP without a head.
    """
    read = _read_files(_locate(uri), expected)
    where, files = read.where, read.files
    if read.manifest["kind"] != "sigrl":
        raise CheckpointError(
            f"{where}: a CLIP without a SigRL head; train one on it (train.py --backbone.pretrained {uri})"
        )
    try:
        weights = load(files.pop(WEIGHTS_FILE))
        config = from_json(RunConfig, files["config.json"].decode(), f"{where}/config.json")
        vocabulary = Vocabulary.parse(files["vocabulary.json"].decode(), f"{where}/vocabulary.json")
        backbone = backbone_from_description(json.loads(files[DESCRIPTION_FILE]), config.backbone)
        edges = None
        if EDGES_FILE in files:
            edges = LabelEdges.parse(files[EDGES_FILE].decode(), f"{where}/{EDGES_FILE}")
        embeddings_VE = weights.get("embeddings_VE")
        model = SigRLModel(backbone, backbone.make_teacher(), config, vocabulary, edges, embeddings_VE)
        model.load_state_dict(weights)
        metrics = json.loads(files[METRICS_FILE])
        calibration = None
        if CALIBRATION_FILE in files:  # a partial file is not listed
            text = files[CALIBRATION_FILE].decode()
            calibration = Calibration.parse(text, vocabulary, f"{where}/{CALIBRATION_FILE}")
    except (ValueError, KeyError, RuntimeError, SafetensorError, SigrlError) as error:
        raise CheckpointError(f"{where}: cannot be loaded ({error}); train again or copy the folder again") from error
    return Checkpoint(
        uri=where, model=model.eval(), config=config, metrics=metrics, calibration=calibration, sha256=read.sha256
    )


def load_weights(folder: Path, model: SigRLModel) -> None:
    """Verifies a local checkpoint and loads its weights into a model of the same architecture.

    Raises:
        CheckpointError: a file is missing, altered, or of another model.
    """
    read = _read_files(str(folder))
    try:
        model.load_state_dict(load(read.files[WEIGHTS_FILE]))
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be loaded ({error}); choose a new --out") from error


def load_clip(folder: str | Path) -> Backbone:
    """Loads and verifies a CLIP folder that `save_clip` wrote."""
    read = _read_files(str(folder))
    return backbone_from_files(read.where, read.files, BackboneConfig(frozen_blocks=10**6))


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
    reason += f" (no {MANIFEST} with {WEIGHTS_FILE})"
    if (description := describe_folder(uri)) is not None:
        reason = f"no checkpoint here, but {description}"
    elif storage.exists(uri) and not storage.is_folder(uri):
        reason = "a file, not a checkpoint folder; a label list belongs to --vocabulary"
    raise CheckpointError(f"{uri}: {reason}; give the --out of train.py")


def _is_training(uri: str) -> bool:
    """Returns whether the folder is the --out of train.py; version 0.1.0 named its plan run.json."""
    plan = storage.join(uri, PLAN)
    return storage.exists(storage.join(uri, "run.json")) or (
        storage.exists(plan) and storage.read_json(plan).get("kind") == "training"
    )


class _CheckpointFiles(NamedTuple):
    """The files of a checkpoint, as they were read.

    Attributes:
        where: the folder.
        sha256: hash of the manifest file.
        manifest: its content.
        files: name -> content of every file in the manifest.
    """

    where: str
    sha256: str
    manifest: dict[str, Any]
    files: dict[str, bytes]


def _read_files(where: str, expected: Pinned | None = None) -> _CheckpointFiles:
    """Reads every file of a checkpoint once, and checks the very bytes that it returns.

    Raises:
        CheckpointError: not a checkpoint, another one than `expected`, or a file is missing or altered.
    """
    text = _read_if_exists(storage.join(where, MANIFEST)) or b""
    try:
        manifest = json.loads(text)
        kind, hashes, version = manifest["kind"], dict(manifest["files"]), manifest["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{where}/{MANIFEST}: not the manifest of a checkpoint ({error!r})") from error
    if kind not in get_args(CheckpointKind):
        raise CheckpointError(f"{where}: holds {kind!r}, expected a checkpoint; give the --out of train.py")
    if version != SCHEMA_VERSION:
        raise CheckpointError(f"{where}: schema version {version}, this program reads {SCHEMA_VERSION}; train again")
    if expected is not None:
        expected.check(where, "model", sha256_of(text), CheckpointError)
    files: dict[str, bytes] = {}
    for name, sha256 in {WEIGHTS_FILE: "nothing", DESCRIPTION_FILE: "nothing", **hashes}.items():
        data = _read_if_exists(storage.join(where, name))
        actual = "missing" if data is None else sha256_of(data)
        if data is None or actual != sha256:
            raise CheckpointError(
                f"{where}/{name}: sha256 is {actual[:12]}, the manifest says {sha256[:12]}; copy the folder again"
            )
        files[name] = data
    return _CheckpointFiles(where, sha256_of(text), manifest, files)


def _read_if_exists(uri: str) -> bytes | None:
    try:
        return storage.read_bytes(uri)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
