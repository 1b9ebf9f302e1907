"""The input of a training: the files that its configuration names, and the shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sigrl_core.config import RunConfig
from sigrl_core.data.shards import ShardFolder
from sigrl_core.errors import ConfigError, ShardError
from sigrl_core.io import storage
from sigrl_core.io.checksums import Pinned
from sigrl_core.labels.edges import LabelEdges
from sigrl_core.labels.embeddings import embeddings_sha256, load_embeddings
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.model.backbone import Backbone, with_absolute_path
from sigrl_core.training.losses import get_loss


def resolve_files(config: RunConfig, vocabulary: Vocabulary) -> tuple[RunConfig, dict[str, str]]:
    """Makes the paths in a configuration absolute and reads the files of label edges and label embeddings.

    Returns:
        The configuration with paths that any worker can use, and the hashes of the files about labels.

    Raises:
        SigrlError: a file cannot be used.
    """
    hashes: dict[str, str] = {}
    config = replace(config, backbone=with_absolute_path(config.backbone))
    if (uri := config.graph.edges) is not None:
        uri = storage.absolute(uri)
        hashes["label_edges_sha256"] = LabelEdges.load(uri, vocabulary).hash
        config = replace(config, graph=replace(config.graph, edges=uri))
    if (uri := config.backbone.label_embeddings) is not None:
        uri = storage.absolute(uri)
        hashes["label_embeddings_sha256"] = embeddings_sha256(load_embeddings(uri, vocabulary))
        config = replace(config, backbone=replace(config.backbone, label_embeddings=uri))
    return config, hashes


def backbone_hash(config: RunConfig, backbone: Backbone) -> dict[str, str]:
    """Returns `backbone_sha256` of weights that were loaded from a disk.

    Weights with a public name need none. Random weights depend on the seed, and the driver's differ from the workers'.
    """
    return {"backbone_sha256": backbone.weights_sha256()} if Path(config.backbone.pretrained).exists() else {}


def pinned_inputs(plan: Mapping[str, Any], out: str) -> dict[str, Pinned]:
    """Returns the hashes in the plan of a training or search, by key, such as `data_sha256`.

    Workers get them together with the paths, and check what they read.
    """
    hashes = {key: value for key, value in plan.items() if key.endswith("_sha256") and value is not None}
    return {key: Pinned(sha256, f"the plan of {out}") for key, sha256 in hashes.items()}


def check_data(config: RunConfig, folder: ShardFolder, validation: ShardFolder) -> None:
    """Checks that a configuration can be trained on a shard folder and validated on another one.

    Raises:
        ConfigError: the loss is unknown, or the augmentation needs images.
        ShardError: no label is seen, or the folders have different vocabularies.
    """
    get_loss(config.loss.kind)
    if folder.kind == "features" and config.training.augment != "none":
        raise ConfigError(
            f"training.augment is {config.training.augment!r}, but {folder.uri} holds features, which cannot be "
            "augmented; add --training.augment none"
        )
    if not folder.vocabulary.positions("seen"):
        raise ShardError(f"{folder.uri}: its vocabulary has no seen labels; run preprocess.py with labels to train on")
    if validation.vocabulary.hash != folder.vocabulary.hash:
        raise ShardError(
            f"{validation.uri}: vocabulary {validation.vocabulary.hash[:8]}, "
            f"{folder.uri} has {folder.vocabulary.hash[:8]}; "
            f"run preprocess.py with --vocabulary {folder.uri}/vocabulary.json"
        )
