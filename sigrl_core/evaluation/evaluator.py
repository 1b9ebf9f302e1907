"""Evaluates checkpoints on a shard folder by all protocols, beside zero-shot CLIP."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sigrl_core.config import EvaluateConfig
from sigrl_core.data.dataset import ShardDataset
from sigrl_core.data.shards import ShardFolder
from sigrl_core.errors import CheckpointError, ShardError
from sigrl_core.evaluation.calibrate import measure_calibration
from sigrl_core.evaluation.inputs import check_folder, iterate_batches, open_test_split
from sigrl_core.evaluation.protocols import PROTOCOLS, compute_metrics
from sigrl_core.inference.tagger import Tagger
from sigrl_core.io.checksums import Pinned
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.metrics import average_precision
from sigrl_core.model import scoring
from sigrl_core.model.model import compute_tokens

Scorer = Callable[[Tensor, Vocabulary], np.ndarray]
SIGRL = "sigrl"
"""Name of the row of the evaluated checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of `evaluate`.

    Attributes:
        metrics: contents of `metrics.json`.
        vocabulary: the labels, in the order of the C axis.
        uris: the images, in the order of the N axis.
        states_NC: label states, int8: 1 present, -1 absent, 0 unknown.
        scores: row name -> protocol -> scores [N, evaluated labels of the protocol].
    """

    metrics: dict[str, Any]
    vocabulary: Vocabulary
    uris: list[str]
    states_NC: np.ndarray
    scores: dict[str, dict[str, np.ndarray]]


class ScoredBatch(NamedTuple):
    """Images in order, their label states int8 [B,C], and row name -> protocol -> scores [B, labels]."""

    uris: list[str]
    states_BC: np.ndarray
    scores: dict[str, dict[str, np.ndarray]]


class Evaluator:
    """Scores images with a checkpoint, with the CLIP that it was trained from, and with other checkpoints.

    Args:
        tagger: the evaluated checkpoint. Its rows are `sigrl`, `sigrl_independent` (vocabulary-independent logits),
            `clip_global` and `clip_global_local`.
        compared: row name -> another checkpoint of the same vocabulary.

    Raises:
        CheckpointError: the vocabularies differ.
    """

    def __init__(self, tagger: Tagger, compared: Mapping[str, Tagger]) -> None:
        self.tagger, self.compared, vocabulary = tagger, compared, tagger.vocabulary
        for name, other in compared.items():
            if other.vocabulary.hash != vocabulary.hash:
                raise CheckpointError(
                    f"{other.checkpoint.uri} ({name}): vocabulary {other.vocabulary.hash[:8]}, "
                    f"{tagger.checkpoint.uri} has {vocabulary.hash[:8]}; compare checkpoints of one vocabulary"
                )
        self._scored_protocols = [
            name
            for name, protocol in PROTOCOLS.items()
            if protocol.scored == protocol.evaluated and protocol.evaluated_columns(vocabulary)
        ]
        self._scorers: dict[str, tuple[Tagger, Scorer]] = {
            SIGRL: (tagger, tagger.score),
            "sigrl_independent": (tagger, tagger.logits),
            "clip_global": (tagger, lambda tokens, labels: clip_scores(tagger, tokens, labels, local=False)),
            "clip_global_local": (tagger, lambda tokens, labels: clip_scores(tagger, tokens, labels, local=True)),
            **{name: (other, other.score) for name, other in compared.items()},
        }

    @classmethod
    def load(
        cls, config: EvaluateConfig, device: str = "cpu", expected: Mapping[str, Pinned] | None = None
    ) -> Evaluator:
        """Loads all checkpoints.

        Args:
            expected: row name -> hash that the checkpoint must have, from `hashes`; None takes any.

        Raises:
            CheckpointError: a checkpoint cannot be loaded, or is another one than expected.
        """
        pinned = expected or {}
        tagger = Tagger.load(config.checkpoint, device, config.local_candidates, expected=pinned.get(SIGRL))
        compared = config.compared_checkpoints.items()
        return cls(tagger, {name: Tagger.load(uri, device, expected=pinned.get(name)) for name, uri in compared})

    @property
    def hashes(self) -> dict[str, str]:
        """Row name -> hash of the loaded checkpoint, see `Checkpoint.sha256`."""
        return {name: tagger.checkpoint.sha256 for name, tagger in {SIGRL: self.tagger, **self.compared}.items()}

    def open_images(self, folder: ShardFolder) -> ShardDataset:
        """Opens the images to evaluate: a folder's test split, or all if it has none.

        Raises:
            ShardError: the folder has another vocabulary, features of another backbone, or no images.
        """
        for tagger in (self.tagger, *self.compared.values()):
            check_folder(folder, tagger)
        dataset = open_test_split(folder)
        if not len(dataset):
            raise ShardError(f"{folder.uri}: no images to evaluate; run preprocess.py on a corpus with readable images")
        return dataset

    def score(self, dataset: ShardDataset, indices: np.ndarray | None = None) -> Iterator[ScoredBatch]:
        """Scores the images at these indices, in order; None means all images."""
        vocabulary = self.tagger.vocabulary
        taggers = {id(tagger): tagger for tagger, _ in self._scorers.values()}
        for batch in iterate_batches(dataset, self.tagger.model.backbone.image_size, indices):
            tokens = {key: compute_tokens(tagger.model, batch) for key, tagger in taggers.items()}
            scores = {
                name: {
                    protocol: score(tokens[id(tagger)], PROTOCOLS[protocol].scored_vocabulary(vocabulary))
                    for protocol in (("gzsl",) if name == "sigrl_independent" else self._scored_protocols)
                }
                for name, (tagger, score) in self._scorers.items()
            }
            yield ScoredBatch(batch.uris, batch.states_BC.numpy(), scores)


def evaluate(
    evaluator: Evaluator,
    folder: ShardFolder,
    on_progress: Callable[[int], None] = lambda num_images: None,
    batches: Iterable[ScoredBatch] | None = None,
) -> Evaluation:
    """Evaluates checkpoints on the test split of a shard folder, or on all images if it has none.

    Args:
        evaluator: the checkpoints.
        folder: labelled shards with the checkpoints' vocabulary.
        on_progress: called after each batch with its number of images.
        batches: the scores of all images of `Evaluator.open_images`, in order; None computes them.

    Raises:
        ShardError: see `Evaluator.open_images`.
    """
    tagger, vocabulary = evaluator.tagger, evaluator.tagger.vocabulary
    scored: list[ScoredBatch] = []
    for batch in evaluator.score(evaluator.open_images(folder)) if batches is None else batches:
        scored.append(batch)
        on_progress(len(batch.uris))
    uris = [uri for batch in scored for uri in batch.uris]
    states_NC = np.concatenate([batch.states_BC for batch in scored])
    scores = _join_scores(scored, vocabulary)
    metrics = {
        "rows": [{"name": name, **_protocol_metrics(by, states_NC, vocabulary)} for name, by in scores.items()],
        "per_label": {
            name: dict(zip(vocabulary.names, average_precision(by["gzsl"], states_NC).tolist(), strict=True))
            for name, by in scores.items()
        },
        "images": len(uris),
        "labels": {"seen": len(vocabulary.positions("seen")), "unseen": len(vocabulary.positions("unseen"))},
        "vocabulary_hash": vocabulary.hash,
        "data": folder.uri,
        "calibration": measure_calibration(tagger, scores["sigrl_independent"]["gzsl"], states_NC),
        "data_sha256": folder.manifest["sha256"],
        "checkpoints": {
            SIGRL: tagger.checkpoint.uri,
            **{name: other.checkpoint.uri for name, other in evaluator.compared.items()},
        },
        "checkpoints_sha256": evaluator.hashes,
    }
    return Evaluation(metrics=metrics, vocabulary=vocabulary, uris=uris, states_NC=states_NC, scores=scores)


def _join_scores(batches: list[ScoredBatch], vocabulary: Vocabulary) -> dict[str, dict[str, np.ndarray]]:
    """Concatenates the scores of batches, and adds the protocols that evaluate a part of the scores of `gzsl`."""
    scores = {
        name: {protocol: np.concatenate([batch.scores[name][protocol] for batch in batches]) for protocol in by}
        for name, by in batches[0].scores.items()
    }
    for by in scores.values():
        for name, protocol in PROTOCOLS.items():
            if columns := protocol.evaluated_columns(vocabulary):
                by.setdefault(name, by["gzsl"][:, columns])
    return scores


def _protocol_metrics(
    scores: Mapping[str, np.ndarray], states_NC: np.ndarray, vocabulary: Vocabulary
) -> dict[str, dict[str, float]]:
    return {
        name: compute_metrics(scores_NC, states_NC[:, PROTOCOLS[name].evaluated_columns(vocabulary)])
        for name, scores_NC in scores.items()
    }


@torch.no_grad()
def clip_scores(tagger: Tagger, tokens_BNW: Tensor, vocabulary: Vocabulary, *, local: bool) -> np.ndarray:
    """Computes the scores [B,C] of zero-shot CLIP, without training.

    Args:
        local: combines the cosine of class token and text with the local score of the best patches.
    """
    labels_CD = tagger.encode_labels(vocabulary).labels_CD
    cls_BD, patches_BPD = tagger.model.teacher(tokens_BNW)
    global_BC = scoring.global_scores(torch.nn.functional.normalize(cls_BD, dim=-1), labels_CD)
    if not local:
        return global_BC.cpu().numpy()
    local_BC = scoring.local_scores(patches_BPD, labels_CD, tagger.checkpoint.config.scoring.top_k_patches)
    return (
        scoring.combine(scoring.normalise_over_labels(local_BC), scoring.normalise_over_labels(global_BC)).cpu().numpy()
    )
