"""The evaluation protocols.

A score depends on the vocabulary it is computed with, so each protocol defines one::

    zsl             zero-shot: only the unseen labels are scored
    zsl_asked_all   all labels are scored, and the unseen ones are evaluated
    gzsl            generalised zero-shot: all labels are scored and evaluated
    seen            only the seen labels are scored
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sigrl_core.labels.vocabulary import LabelGroup, Vocabulary
from sigrl_core.metrics import precision_recall_f1_at_k
from sigrl_core.plugins import METRICS

TOP_K = (3, 5)


class Protocol(NamedTuple):
    """The labels that a protocol scores and those that it evaluates; None means all labels."""

    scored: LabelGroup | None
    """The labels that are scored together."""
    evaluated: LabelGroup | None
    """The scored labels whose scores are evaluated."""

    def scored_vocabulary(self, vocabulary: Vocabulary) -> Vocabulary:
        return vocabulary if self.scored is None else vocabulary.subset(self.scored)

    def evaluated_columns(self, vocabulary: Vocabulary) -> list[int]:
        """Returns the positions of the evaluated labels in the whole vocabulary."""
        return list(range(len(vocabulary))) if self.evaluated is None else vocabulary.positions(self.evaluated)


PROTOCOLS = {
    "zsl": Protocol(scored="unseen", evaluated="unseen"),
    "zsl_asked_all": Protocol(scored=None, evaluated="unseen"),
    "gzsl": Protocol(scored=None, evaluated=None),
    "seen": Protocol(scored="seen", evaluated="seen"),
}


def compute_metrics(scores_NC: np.ndarray, states_NC: np.ndarray) -> dict[str, float]:
    """Computes the metrics of `plugins.METRICS`, and F1, precision and recall at each of `TOP_K`."""
    metrics = {name: float(metric(scores_NC, states_NC)) for name, metric in METRICS.items()}
    for k in TOP_K:
        at_k = precision_recall_f1_at_k(scores_NC, states_NC, k)
        metrics |= {f"f1@{k}": at_k.f1, f"p@{k}": at_k.precision, f"r@{k}": at_k.recall}
    return metrics
