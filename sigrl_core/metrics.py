"""Metrics: pure functions of scores [N, C] and label states [N, C] (+1 present, -1 absent, 0 unknown), in numpy.

All are fractions in [0, 1]. Inputs are never modified. `plugins.METRICS` names those that validation and evaluation
compute; `register_metric` adds one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int8
from numpy.typing import NDArray


class AtK(NamedTuple):
    """Micro averages over all images and their k best labels."""

    precision: float
    recall: float
    f1: float


class PrecisionRecallCurve(NamedTuple):
    """One point per threshold, thresholds descending, for all entries that score at least the threshold."""

    precision: NDArray
    recall: NDArray
    thresholds: NDArray


class Reliability(NamedTuple):
    """One point per non-empty bin of probabilities."""

    probability: NDArray
    """Mean probability of its entries."""
    present: NDArray
    """Fraction of its entries that are present."""
    entries: NDArray
    """Number of its entries."""


def average_precision(
    scores_NC: Float[np.ndarray, "N C"], states_NC: Int8[np.ndarray, "N C"]
) -> Float[np.ndarray, " C"]:
    """Computes each label's average precision over the images with a known state; 0 without a positive.

    It equals scikit-learn's average_precision_score, also for ties: every positive counts with the precision among the
    images that score at least as high.
    """
    pairs = zip(np.asarray(scores_NC).T, np.asarray(states_NC).T, strict=True)
    return np.array([_average_precision(scores_N, states_N) for scores_N, states_N in pairs])


def _average_precision(scores_N: NDArray, states_N: NDArray) -> float:
    known, positives = np.sort(scores_N[states_N != 0]), np.sort(scores_N[states_N > 0])
    if not len(positives):
        return 0.0
    num_ranked = len(known) - np.searchsorted(known, positives)
    hits = len(positives) - np.searchsorted(positives, positives)
    return float(np.mean(hits / num_ranked))


def mean_average_precision(scores_NC: Float[np.ndarray, "N C"], states_NC: Int8[np.ndarray, "N C"]) -> float:
    """Computes the mean of average precision over the labels that have a positive; nan if none has.

    A label without a positive cannot be ranked: counting its 0 would measure the data, not the model.
    """
    measurable_C = (np.asarray(states_NC) > 0).any(axis=0)
    if not measurable_C.any():
        return float("nan")
    return float(average_precision(scores_NC, states_NC)[measurable_C].mean())


def precision_recall_f1_at_k(scores_NC: Float[np.ndarray, "N C"], states_NC: Int8[np.ndarray, "N C"], k: int) -> AtK:
    """Takes the k best labels of every image as its tags and counts over all images together (micro).

    A tag of unknown state counts as wrong, as in the published numbers, so partly labelled data understates precision.
    With `k` above C all labels are tags.
    """
    k = min(k, scores_NC.shape[1])
    tags_NK = np.argpartition(scores_NC, -k, axis=1)[:, -k:]
    hits = int((np.take_along_axis(states_NC, tags_NK, axis=1) > 0).sum())
    tagged, present = tags_NK.size, int((np.asarray(states_NC) > 0).sum())
    return AtK(_ratio(hits, tagged), _ratio(hits, present), _ratio(2 * hits, tagged + present))


def precision_recall_curve(
    scores_NC: Float[np.ndarray, "N C"], states_NC: Int8[np.ndarray, "N C"]
) -> PrecisionRecallCurve:
    """Computes micro precision and recall over all known entries, per distinct score; empty without a positive."""
    known_NC = np.asarray(states_NC) != 0
    scores, positive = np.asarray(scores_NC)[known_NC], np.asarray(states_NC)[known_NC] > 0
    if not positive.any():
        return PrecisionRecallCurve(*(np.empty(0) for _ in PrecisionRecallCurve._fields))
    order = np.argsort(scores, kind="stable")[::-1]
    scores, hits = scores[order], np.cumsum(positive[order])
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # index of the last entry of each run of ties
    return PrecisionRecallCurve(hits[last] / (last + 1), hits[last] / hits[-1], scores[last])


def expected_calibration_error(
    probabilities_NC: Float[np.ndarray, "N C"], states_NC: Int8[np.ndarray, "N C"], bins: int = 15
) -> float:
    """Computes the expected calibration error over all known entries; nan without any (Guo et al. 2017, eq. 3).

    Entries fall into `bins` of equal width; the error is the mean of `abs(mean probability - fraction present)` over
    the bins, weighted by their entries.
    """
    points = reliability(probabilities_NC, states_NC, bins)
    if not len(points.entries):
        return float("nan")
    return float(np.average(np.abs(points.probability - points.present), weights=points.entries))


def reliability(
    probabilities_NC: Float[np.ndarray, "N C"], states_NC: Int8[np.ndarray, "N C"], bins: int = 15
) -> Reliability:
    """Returns the bins that `expected_calibration_error` averages, those that contain a known entry."""
    known_NC = np.asarray(states_NC) != 0
    probabilities, present = np.asarray(probabilities_NC, np.float64)[known_NC], np.asarray(states_NC)[known_NC] > 0
    bin_of = np.minimum((probabilities * bins).astype(int), bins - 1)
    count, total, hits = (np.bincount(bin_of, weights, bins) for weights in (None, probabilities, present))
    used = count > 0
    return Reliability(total[used] / count[used], hits[used] / count[used], count[used])


def f1_per_label(tagged_NC: Bool[np.ndarray, "N C"], states_NC: Int8[np.ndarray, "N C"]) -> Float[np.ndarray, " C"]:
    """Computes each label's F1 over the images with a known state; 0 if it is neither tagged nor present."""
    known_NC, present_NC = np.asarray(states_NC) != 0, np.asarray(states_NC) > 0
    hits, tagged = (tagged_NC & present_NC).sum(0), (tagged_NC & known_NC).sum(0)
    return 2 * hits / np.maximum(tagged + present_NC.sum(0), 1)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
