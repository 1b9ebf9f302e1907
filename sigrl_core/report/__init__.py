"""The report of an evaluation: metrics.json, one self-contained HTML page, and the same headline as text.

The page is plain HTML, CSS and inline SVG: no scripts, no requests, light and dark by the reader's setting.
"""

from __future__ import annotations

from typing import Any

from sigrl_core import storage
from sigrl_core.config import EvaluateConfig
from sigrl_core.evaluation import evaluate
from sigrl_core.progress import progress_line
from sigrl_core.records import ShardFolder
from sigrl_core.report.headline import print_table
from sigrl_core.report.page import write_report
from sigrl_core.tagger import Tagger

__all__ = ["evaluate_to_report", "print_table", "write_report"]


def evaluate_to_report(config: EvaluateConfig) -> dict[str, Any]:
    """Measures a checkpoint beside others; writes report.html, then metrics.json; returns the metrics.

    Raises:
        CheckpointError, ShardError: an input that cannot be used, or inputs of different vocabularies.
        StorageError: `config.out` cannot be written.
    """
    folder = ShardFolder.open(config.data)
    tagger = Tagger.load(config.checkpoint, local_candidates=config.local_candidates)
    named = (item.partition("=") for item in config.compare)
    compare = {name: Tagger.load(uri) for name, _, uri in named}
    with progress_line("evaluate", folder.num_rows, unit="pictures") as advance:
        evaluation = evaluate(tagger, compare, folder, advance)
    storage.make_folder(config.out)
    write_report(evaluation, folder, tagger, tagger.checkpoint.metrics["history"], config.out)
    storage.write_json(storage.join(config.out, "metrics.json"), evaluation.metrics)
    return evaluation.metrics
