"""Measures checkpoints on a shard folder: zero-shot, generalised and seen-only, beside zero-shot CLIP.

A score depends on the vocabulary it was asked with, so each protocol states its own question::

    zsl             asked with the unseen labels alone
    zsl_asked_all   asked with all labels, the unseen ones kept
    gzsl            asked with all labels
    seen            asked with the seen labels alone
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from sigrl_core.batches import Batch, Rows, Slice, epoch_batches, read_batch
from sigrl_core.calibration import Calibration, fit_calibration, sigmoid
from sigrl_core.checkpoint import add_calibration
from sigrl_core.config import CalibrateConfig, EvaluateConfig
from sigrl_core.errors import CheckpointError, ShardError
from sigrl_core.metrics import (
    average_precision,
    expected_calibration_error,
    f1_per_label,
    mean_average_precision,
    precision_recall_f1_at_k,
    reliability,
)
from sigrl_core.model import scoring
from sigrl_core.model.asked import Asked
from sigrl_core.model.recogniser import Recogniser
from sigrl_core.progress import progress_line
from sigrl_core.records import ShardFolder
from sigrl_core.tagger import Tagger
from sigrl_core.training import gather_rows, tokens_of
from sigrl_core.vocabulary import Split, Vocabulary

PROTOCOLS = ("zsl", "zsl_asked_all", "gzsl", "seen")
TOP_K = (3, 5)
BATCH_SIZE = 64

Scorer = Callable[[Tensor, Vocabulary], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured, and what the report draws from.

    Attributes:
        metrics: what `metrics.json` holds.
        vocabulary: the labels, in the order of the C axis.
        uris: of the pictures, in the order of the N axis.
        states_NC: int8 truth.
        scores: row name -> protocol -> scores [N, labels of that protocol].
    """

    metrics: dict[str, Any]
    vocabulary: Vocabulary
    uris: list[str]
    states_NC: np.ndarray
    scores: dict[str, dict[str, np.ndarray]]

    def columns(self, protocol: str) -> list[int]:
        return columns(self.vocabulary, protocol)


def columns(vocabulary: Vocabulary, protocol: str) -> list[int]:
    """Positions of the labels that a protocol measures."""
    everything = list(range(len(vocabulary)))
    return {"seen": vocabulary.positions("seen"), "gzsl": everything}.get(protocol, vocabulary.positions("unseen"))


def measured_rows(folder: ShardFolder) -> Rows:
    """The pictures of a shard folder that are measured: its test split, or all where it has none."""
    return Rows(folder, "test" if folder.manifest["split"]["test"] else "all")


class Scored(NamedTuple):
    """Pictures in order, their truth int8 [B,C], and row name -> protocol -> scores [B, labels of that protocol]."""

    uris: list[str]
    states_BC: np.ndarray
    scores: dict[str, dict[str, np.ndarray]]


class Comparison:
    """A checkpoint, others beside it, and the CLIP it started from.

    Args:
        tagger: the checkpoint under test; gives the rows `sigrl`, `sigrl_independent` (scores that do not depend on the
            vocabulary asked), `clip_global` and `clip_global_local`.
        compare: row name -> another checkpoint, trained with the same vocabulary.

    Raises:
        CheckpointError: vocabularies differ.
    """

    def __init__(self, tagger: Tagger, compare: dict[str, Tagger]) -> None:
        self.tagger, self.compare, vocabulary = tagger, compare, tagger.vocabulary
        for name, other in compare.items():
            if other.vocabulary.hash != vocabulary.hash:
                raise CheckpointError(
                    f"{other.checkpoint.uri} ({name}): vocabulary {other.vocabulary.hash[:8]}, "
                    f"{tagger.checkpoint.uri} has {vocabulary.hash[:8]}; compare checkpoints of one vocabulary"
                )
        self._protocols = [p for p in PROTOCOLS if columns(vocabulary, p) and p != "zsl_asked_all"]
        self._scorers: dict[str, tuple[Tagger, Scorer]] = {
            "sigrl": (tagger, tagger.score),
            "sigrl_independent": (tagger, tagger.logits),
            "clip_global": (tagger, lambda tokens, labels: clip_scores(tagger, tokens, labels, local=False)),
            "clip_global_local": (tagger, lambda tokens, labels: clip_scores(tagger, tokens, labels, local=True)),
            **{name: (other, other.score) for name, other in compare.items()},
        }

    @classmethod
    def load(cls, config: EvaluateConfig, device: str = "cpu") -> Comparison:
        """Raises CheckpointError where one cannot be loaded."""
        tagger = Tagger.load(config.checkpoint, device, config.local_candidates)
        return cls(tagger, {name: Tagger.load(uri, device) for name, uri in config.others.items()})

    def measured_rows(self, folder: ShardFolder) -> Rows:
        """The pictures that are measured.

        Raises:
            ShardError: they are of another vocabulary, or features of another backbone, or there are none.
        """
        check_vocabulary(folder, self.tagger.vocabulary, self.tagger.checkpoint.uri)
        for each in (self.tagger, *self.compare.values()):
            folder.check_features(each.recogniser.backbone.frozen_sha256, each.checkpoint.uri)
        rows = measured_rows(folder)
        if not len(rows):
            raise ShardError(
                f"{folder.uri}: no pictures to measure; run preprocess.py on a corpus with readable pictures"
            )
        return rows

    def score(self, rows: Rows, numbers: np.ndarray | None = None) -> Iterator[Scored]:
        """Scores these rows, or all, in order."""
        taggers = {id(tagger): tagger for tagger, _ in self._scorers.values()}
        for batch in batches_of(rows, self.tagger.recogniser.backbone.image_size, numbers):
            tokens = {each: tokens_of(tagger.recogniser, batch) for each, tagger in taggers.items()}
            scores = {
                name: {
                    protocol: score(tokens[id(owner)], asked_vocabulary(self.tagger.vocabulary, protocol))
                    for protocol in (("gzsl",) if name == "sigrl_independent" else self._protocols)
                }
                for name, (owner, score) in self._scorers.items()
            }
            yield Scored(batch.uris, batch.states_BC.numpy(), scores)


def evaluate(
    comparison: Comparison,
    folder: ShardFolder,
    on_progress: Callable[[int], None] = lambda rows: None,
    scored: Iterable[Scored] | None = None,
) -> Evaluation:
    """Measures on every picture of a shard folder, or of its test split where it has one.

    Args:
        comparison: what is measured.
        folder: labelled shards of the checkpoint's vocabulary.
        on_progress: called with the number of pictures done since the last call.
        scored: what was found for all of `Comparison.measured_rows`, in order; None scores them here.

    Raises:
        ShardError: see `Comparison.measured_rows`.
    """
    tagger, vocabulary = comparison.tagger, comparison.tagger.vocabulary
    found: list[Scored] = []
    for each in comparison.score(comparison.measured_rows(folder)) if scored is None else scored:
        found.append(each)
        on_progress(len(each.uris))
    uris = [uri for each in found for uri in each.uris]
    states_NC = np.concatenate([each.states_BC for each in found])
    scores = {
        name: {protocol: np.concatenate([each.scores[name][protocol] for each in found]) for protocol in by}
        for name, by in found[0].scores.items()
    }
    for by in scores.values():
        for protocol in PROTOCOLS:
            if columns(vocabulary, protocol):  # of what does not depend on what was asked, part of the answer
                by.setdefault(protocol, by["gzsl"][:, columns(vocabulary, protocol)])
    metrics = {
        "rows": [{"name": name, **_measured(by, states_NC, vocabulary)} for name, by in scores.items()],
        "per_label": {
            name: dict(zip(vocabulary.names, average_precision(by["gzsl"], states_NC).tolist(), strict=True))
            for name, by in scores.items()
        },
        "pictures": len(uris),
        "labels": {"seen": len(vocabulary.positions("seen")), "unseen": len(vocabulary.positions("unseen"))},
        "vocabulary_hash": vocabulary.hash,
        "data": folder.uri,
        "calibration": _calibrated(tagger, scores["sigrl_independent"]["gzsl"], states_NC),
        "checkpoints": {
            "sigrl": tagger.checkpoint.uri,
            **{name: t.checkpoint.uri for name, t in comparison.compare.items()},
        },
    }
    return Evaluation(metrics=metrics, vocabulary=vocabulary, uris=uris, states_NC=states_NC, scores=scores)


def _calibrated(tagger: Tagger, logits_NC: np.ndarray, states_NC: np.ndarray) -> dict[str, dict[str, Any]] | None:
    """Probabilities before and after calibration, and tags by one threshold and by each label's own; None without it.

    F1 is the mean over the labels that occur; `reliability` has (mean probability, share present) of each bin.
    """
    calibration, vocabulary = tagger.checkpoint.calibration, tagger.vocabulary
    if calibration is None:
        return None
    raw_NC, probability_NC = sigmoid(logits_NC), calibration.probabilities(logits_NC, vocabulary.names)
    thresholds_C, found = calibration.thresholds(vocabulary.names), {}
    for split in get_args(Split):
        chosen = np.array(vocabulary.positions(split), int)
        chosen = chosen[(states_NC[:, chosen] > 0).any(0)]
        if len(chosen):
            truth = states_NC[:, chosen]
            tagged = {
                "f1_raw_half": raw_NC[:, chosen] >= 0.5,
                "f1_half": probability_NC[:, chosen] >= 0.5,
                "f1_thresholds": probability_NC[:, chosen] >= thresholds_C[chosen],
            }
            found[split] = {
                "ece_before": expected_calibration_error(raw_NC[:, chosen], truth),
                "ece_after": expected_calibration_error(probability_NC[:, chosen], truth),
                **{name: float(f1_per_label(by, truth).mean()) for name, by in tagged.items()},
                "reliability": {
                    name: np.stack(reliability(by[:, chosen], truth)[:2], axis=1).tolist()
                    for name, by in (("before", raw_NC), ("after", probability_NC))
                },
            }
    return found


def calibrate(config: CalibrateConfig) -> Calibration:
    """Fits a calibration on held-out pictures and writes it into the checkpoint.

    Raises:
        CheckpointError, ShardError: inputs that cannot be used, or of different vocabularies; too few examples.
    """
    tagger, folder = Tagger.load(config.checkpoint), ShardFolder.open(config.data)
    check_vocabulary(folder, tagger.vocabulary, tagger.checkpoint.uri)
    folder.check_features(tagger.recogniser.backbone.frozen_sha256, tagger.checkpoint.uri)
    rows = Rows(folder, config.part)
    if not len(rows):
        raise ShardError(
            f"{folder.uri}: no pictures to calibrate on (part {config.part}); preprocess with --validation-fraction "
            "above 0, or take shards that nothing was trained on with --part all"
        )
    logits, states = [], []
    with progress_line("calibrate", len(rows), unit="pictures") as advance:
        for batch in batches_of(rows, tagger.recogniser.backbone.image_size):
            logits.append(tagger.logits(tokens_of(tagger.recogniser, batch), tagger.vocabulary))
            states.append(batch.states_BC.numpy())
            advance(len(batch.uris))
    calibration = fit_calibration(np.concatenate(logits), np.concatenate(states), tagger.vocabulary, config)
    add_calibration(tagger.checkpoint.uri, calibration)
    return calibration


def asked_vocabulary(vocabulary: Vocabulary, protocol: str) -> Vocabulary:
    return vocabulary if protocol == "gzsl" else vocabulary.subset("seen" if protocol == "seen" else "unseen")


@torch.no_grad()
def clip_scores(tagger: Tagger, tokens_BNW: Tensor, vocabulary: Vocabulary, *, local: bool) -> np.ndarray:
    """Zero-shot CLIP, before any training: cosine of class token and text, or that and the best patches combined."""
    labels_CD = tagger.ask(vocabulary).labels_CD
    glob_BD, patches_BPD = tagger.recogniser.teacher(tokens_BNW)
    global_BC = scoring.global_scores(torch.nn.functional.normalize(glob_BD, dim=-1), labels_CD)
    if not local:
        return global_BC.cpu().numpy()
    local_BC = scoring.local_scores(patches_BPD, labels_CD, tagger.checkpoint.config.scoring.patches_kept)
    return scoring.combine(scoring.over_labels(local_BC), scoring.over_labels(global_BC)).cpu().numpy()


def check_vocabulary(folder: ShardFolder, vocabulary: Vocabulary, checkpoint_uri: str) -> None:
    """Raises ShardError where shards and checkpoint do not speak of the same labels."""
    if folder.vocabulary.hash != vocabulary.hash:
        raise ShardError(
            f"{folder.uri}: vocabulary {folder.vocabulary.hash[:8]} ({len(folder.vocabulary)} labels), "
            f"{checkpoint_uri} expects {vocabulary.hash[:8]} ({len(vocabulary)} labels); "
            "run preprocess.py with --vocabulary set to the checkpoint's vocabulary.json"
        )


def batches_of(rows: Rows, size: int, numbers: np.ndarray | None = None) -> Iterable[Batch]:
    """These rows, or all, in order."""
    order = np.arange(len(rows)) if numbers is None else numbers
    return epoch_batches(rows, order, BATCH_SIZE, Slice(), lambda numbers: read_batch(rows, numbers, size))


class ValidationQuestion(NamedTuple):
    """Labels asked together in validation, and where they stand among the states of a batch."""

    asked: Asked
    positions: Sequence[int]


def validate(
    recogniser: Recogniser, batches: Iterable[Batch], questions: Mapping[str, ValidationQuestion]
) -> dict[str, float]:
    """mAP of each question, as `validation/` and its name; each worker scores its rows, all of them count once."""
    mine: list[tuple[np.ndarray, list[np.ndarray]]] = []
    with torch.no_grad():
        for batch in batches:
            keep, tokens_BNW = batch.weight_B.numpy() > 0, tokens_of(recogniser, batch)
            scores = [recogniser(tokens_BNW, question.asked).scores.scores_BC for question in questions.values()]
            mine.append((batch.states_BC.numpy()[keep], [each.float().cpu().numpy()[keep] for each in scores]))
    everyone = list(itertools.chain.from_iterable(gather_rows(mine)))
    if not everyone:
        return {}
    states_NV = np.concatenate([states_BV for states_BV, _ in everyone])
    return {
        f"validation/{name}": mean_average_precision(
            np.concatenate([scores[number] for _, scores in everyone]), states_NV[:, list(question.positions)]
        )
        for number, (name, question) in enumerate(questions.items())
    }


def _measured(by: dict[str, np.ndarray], states_NC: np.ndarray, vocabulary: Vocabulary) -> dict[str, dict[str, float]]:
    result = {}
    for protocol, scores in by.items():
        truth = states_NC[:, columns(vocabulary, protocol)]
        result[protocol] = {"map": mean_average_precision(scores, truth)}
        for k in TOP_K:
            at = precision_recall_f1_at_k(scores, truth, k)
            result[protocol] |= {f"f1@{k}": at.f1, f"p@{k}": at.precision, f"r@{k}": at.recall}
    return result
