"""The checkpoint folder: everything inference needs, safetensors and JSON, nothing that must be unpickled::

    manifest.json         written last: kind, versions, vocabulary hash, sha256 of every other file
    weights.safetensors   `backbone.` both CLIP towers, `teacher.` the original CLIP above the frozen blocks, `head.`
    backbone.json         how to build the CLIP architecture
    config.json           the RunConfig
    vocabulary.json       the labels it was trained with, seen and unseen
    label_edges.json      edges between labels, for label graphs that use such
    metrics.json          what training measured
    calibration.json      how scores become probabilities, once calibrate.py has run

The small CLIP of the built-in corpus lies in the same kind of folder, without a head (kind `clip`).
Training state lies apart, see training_state.py.
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

from sigrl_core import __version__, storage
from sigrl_core.calibration import Calibration
from sigrl_core.config import BackboneConfig, RunConfig
from sigrl_core.config_json import from_json, to_json
from sigrl_core.errors import CheckpointError, SigrlError, StorageError
from sigrl_core.label_edges import LabelEdges
from sigrl_core.model.backbone import (
    DESCRIPTION_FILE,
    WEIGHTS_FILE,
    WEIGHTS_PREFIX,
    Backbone,
    backbone_from_description,
    load_backbone_folder,
)
from sigrl_core.model.recogniser import Recogniser
from sigrl_core.records import sha256_of
from sigrl_core.vocabulary import Vocabulary

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
METRICS_FILE = "metrics.json"
EDGES_FILE = "label_edges.json"
CALIBRATION_FILE = "calibration.json"
Kind = Literal["sigrl", "clip"]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint; the model is in evaluation mode, on the CPU."""

    uri: str
    recogniser: Recogniser
    config: RunConfig
    metrics: dict[str, Any]
    calibration: Calibration | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        """The labels it was trained with, seen and unseen."""
        return self.recogniser.vocabulary


def save_checkpoint(folder: str | Path, recogniser: Recogniser, config: RunConfig, metrics: dict[str, Any]) -> None:
    """Writes a checkpoint into a new local folder; the manifest last, so that half of one is never taken for one."""
    files = {
        "config.json": to_json(config),
        "vocabulary.json": recogniser.vocabulary.to_json(),
        METRICS_FILE: _metrics_json(metrics),
    }
    if recogniser.edges is not None:
        files[EDGES_FILE] = recogniser.edges.to_json()
    _write(Path(folder), "sigrl", recogniser.backbone, recogniser.state_dict(), files, recogniser.vocabulary.hash)


def save_clip(folder: str | Path, backbone: Backbone) -> None:
    """Writes a CLIP alone, as `backbone.pretrained` takes it."""
    weights = {WEIGHTS_PREFIX + name: value for name, value in backbone.state_dict().items()}
    _write(Path(folder), "clip", backbone, weights, {}, None)


def _write(
    folder: Path,
    kind: Kind,
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
        (partial / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StorageError(
            f"{folder}: checkpoint cannot be written ({error}); free space or choose another --out"
        ) from error


def publish_checkpoint(folder: str, uri: str, history: list[dict[str, Any]]) -> None:
    """Copies a checkpoint to where it is looked for, its manifest last.

    Args:
        history: metrics of every epoch, those after this one too; takes the place of the checkpoint's own.
    """
    manifest = storage.read_json(storage.join(folder, MANIFEST_FILE))
    metrics = storage.read_json(storage.join(folder, METRICS_FILE)) | {"history": history}
    for name in manifest["files"]:
        told = name == METRICS_FILE
        data = _metrics_json(metrics).encode() if told else storage.read_bytes(storage.join(folder, name))
        manifest["files"][name] = sha256_of(data)
        storage.write_bytes(storage.join(uri, name), data)
    storage.write_json(storage.join(uri, MANIFEST_FILE), manifest)
    storage.remove_unfinished(uri)  # weights of a process that was killed here


def add_calibration(uri: str, calibration: Calibration) -> None:
    """Writes a calibration into a checkpoint, its manifest last, so that a half-written one is never read.

    Args:
        uri: `Checkpoint.uri`; local or s3://.
    """
    manifest = storage.read_json(storage.join(uri, MANIFEST_FILE))
    manifest["files"].pop(CALIBRATION_FILE, None)
    storage.write_json(storage.join(uri, MANIFEST_FILE), manifest)
    data = calibration.to_json().encode()
    storage.write_bytes(storage.join(uri, CALIBRATION_FILE), data)
    manifest["files"][CALIBRATION_FILE] = sha256_of(data)
    storage.write_json(storage.join(uri, MANIFEST_FILE), manifest)


def _metrics_json(metrics: dict[str, Any]) -> str:
    return json.dumps(metrics, indent=1, sort_keys=True) + "\n"


def load_checkpoint(uri: str) -> Checkpoint:
    """Loads and verifies a checkpoint folder, or the `checkpoint` inside the folder of a training run.

    Raises:
        CheckpointError: nothing there, unfinished, altered, or a CLIP without a head.
    """
    with _local_copy(_find(uri)) as (where, folder):
        kind, listed = _verify(where, folder)
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
            if EDGES_FILE in listed:
                edges = LabelEdges.parse((folder / EDGES_FILE).read_text(encoding="utf-8"), f"{where}/{EDGES_FILE}")
            weights = load_file(folder / WEIGHTS_FILE)
            embeddings_VE = weights.get("embeddings_VE")
            recogniser = Recogniser(backbone, backbone.teacher(), config, vocabulary, edges, embeddings_VE)
            recogniser.load_state_dict(weights)
            metrics = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
            calibration = None
            if CALIBRATION_FILE in listed:  # not one that was still being written
                text = (folder / CALIBRATION_FILE).read_text(encoding="utf-8")
                calibration = Calibration.parse(text, vocabulary, f"{where}/{CALIBRATION_FILE}")
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, SigrlError) as error:
            raise CheckpointError(
                f"{where}: cannot be loaded ({error}); train again or copy the folder again"
            ) from error
    return Checkpoint(uri=where, recogniser=recogniser.eval(), config=config, metrics=metrics, calibration=calibration)


def load_weights(folder: Path, recogniser: Recogniser) -> None:
    """Verifies a local checkpoint and loads its weights into a recogniser like the one that was saved.

    Raises:
        CheckpointError: a file is missing, altered, or of another model.
    """
    _verify(str(folder), folder)
    try:
        recogniser.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be loaded ({error}); choose a new --out") from error


def load_clip(folder: str | Path) -> Backbone:
    """Loads and verifies a CLIP folder that `save_clip` wrote."""
    _verify(str(folder), Path(folder))
    return load_backbone_folder(Path(folder), BackboneConfig(frozen_blocks=10**6))


def checkpoint_version(uri: str) -> str:
    """Hash of the manifest of a checkpoint, and so of all its files.

    Raises:
        CheckpointError: there is none.
    """
    return sha256_of(storage.read_bytes(storage.join(_find(uri), MANIFEST_FILE)))


def is_checkpoint(folder: str | Path) -> bool:
    """Whether a finished checkpoint of ours lies in this local folder."""
    return (Path(folder) / MANIFEST_FILE).is_file()


def _find(uri: str) -> str:
    for candidate in (uri, storage.join(uri, "checkpoint")):
        if storage.exists(storage.join(candidate, MANIFEST_FILE)) and storage.exists(
            storage.join(candidate, WEIGHTS_FILE)
        ):
            return candidate
    if storage.exists(storage.join(uri, "run.json")):
        raise CheckpointError(f"{uri}: this training has not finished an epoch; run the same train.py command again")
    what = "no checkpoint here" if storage.exists(uri) else "no such folder"
    raise CheckpointError(f"{uri}: {what} (no {MANIFEST_FILE} with {WEIGHTS_FILE}); give the --out of train.py")


def _verify(where: str, folder: Path) -> tuple[Kind, dict[str, str]]:
    """What the folder is, and the files that its manifest vouches for, with their hashes, all as they should be."""
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        kind, files, version = manifest["kind"], dict(manifest["files"]), manifest["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{where}/{MANIFEST_FILE}: not the manifest of a checkpoint ({error!r})") from error
    if kind not in ("sigrl", "clip"):
        raise CheckpointError(f"{where}: holds {kind!r}, expected a checkpoint; give the --out of train.py")
    if version != SCHEMA_VERSION:
        raise CheckpointError(f"{where}: schema version {version}, this program reads {SCHEMA_VERSION}; train again")
    for name, expected in {WEIGHTS_FILE: "nothing", DESCRIPTION_FILE: "nothing", **files}.items():
        path = folder / name
        found = sha256_of(path.read_bytes()) if path.is_file() else "missing"
        if found != expected:
            raise CheckpointError(
                f"{where}/{name}: sha256 is {found[:12]}, the manifest says {expected[:12]}; copy the folder again"
            )
    return kind, files


@contextmanager
def _local_copy(uri: str) -> Iterator[tuple[str, Path]]:
    """The folder itself where it is local, else a copy that is gone afterwards."""
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
