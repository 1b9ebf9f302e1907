"""The page about an evaluation, section by section."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from sigrl_core import storage
from sigrl_core.config import EvaluateConfig
from sigrl_core.evaluation import Comparison, Evaluation, Scored, evaluate, measured_rows
from sigrl_core.metrics import precision_recall_curve
from sigrl_core.progress import progress_line
from sigrl_core.records import PRESENT, ShardFolder
from sigrl_core.report import headline
from sigrl_core.report.charts import Line, line_chart, line_legend
from sigrl_core.report.examples import heat_maps, pictures
from sigrl_core.report.label_graph import label_graph
from sigrl_core.report.markup import (
    Section,
    counted,
    definitions,
    escape,
    legend,
    marked,
    note,
    percent,
    scrollable,
    whole_page,
)
from sigrl_core.tagger import Tagger

MAX_BARS = 80
CURVE_POINTS = 201


def evaluate_to_report(
    config: EvaluateConfig, score: Callable[[int], Iterable[Scored]] | None = None
) -> dict[str, Any]:
    """Measures a checkpoint beside others; writes report.html, then metrics.json; returns the metrics.

    Args:
        config: what is measured, on what.
        score: has other processes score so many pictures, all that are measured, in order; None scores them here.

    Raises:
        CheckpointError, ShardError: an input that cannot be used, or inputs of different vocabularies.
        StorageError: `config.out` cannot be written.
    """
    folder, comparison = ShardFolder.open(config.data), Comparison.load(config)
    rows = comparison.measured_rows(folder)
    with progress_line("evaluate", len(rows), unit="pictures") as advance:
        scored = score(len(rows)) if score else comparison.score(rows)
        evaluation = evaluate(comparison, folder, advance, scored)
    tagger = comparison.tagger
    storage.make_folder(config.out)
    write_report(evaluation, folder, tagger, tagger.checkpoint.metrics["history"], config.out)
    storage.write_json(storage.join(config.out, "metrics.json"), evaluation.metrics)
    return evaluation.metrics


def write_report(evaluation: Evaluation, folder: ShardFolder, tagger: Tagger, history: list[dict], out: str) -> None:
    """Writes `report.html` into a folder.

    Args:
        evaluation: what `evaluate` measured with `tagger` on `folder`.
        folder: the pictures.
        tagger: the checkpoint under test.
        history: the metrics of each epoch of its training (metrics.jsonl); may be empty.
        out: folder, local or s3://.

    Raises:
        ShardError: `folder` is not what was evaluated.
        StorageError: `out` cannot be written.
    """
    metrics, source = evaluation.metrics, folder.pictures()
    rows = None if source is None else measured_rows(source)
    sections = [
        Section("headline", "Headline", headline.section(metrics)),
        Section("training", "Training", _training(history)),
        Section("labels", "Average precision of each label", _bars(evaluation), "Labels"),
        Section("curves", "Precision and recall", _curves(evaluation)),
        Section("calibration", "Calibration", _calibration(evaluation)),
        Section("graph", "Label graph", label_graph(evaluation, tagger)),
        Section("pictures", "Pictures and their tags", pictures(evaluation, rows), "Pictures"),
        Section("heat", "Where labels fit", heat_maps(evaluation, rows, tagger), "Heat maps"),
        Section("run", "This run", _facts(evaluation, tagger)),
    ]
    page = whole_page("SigRL evaluation", headline.lead(metrics), sections)
    storage.write_bytes(storage.join(out, "report.html"), page)


def _training(history: list[dict]) -> str:
    if not history:
        return note("No training history was given, so there are no curves.")
    apart = ("distillation", "gradient_norm", "seconds", "data_wait_s", "images_per_s", "memory_mb")
    losses = [key for key in history[0] if key.startswith("train/") and key.removeprefix("train/") not in apart]
    panels = {
        "Loss": {key: "total" if key == "train/loss" else key.removeprefix("train/") for key in losses},
        "Distillation": {"train/distillation": "distillation"},
        "Validation mAP, seen labels (%)": {"validation/map": "validation mAP"},
        "Seconds an epoch": {"train/seconds": "whole epoch", "train/data_wait_s": "waiting for data"},
    }
    figures = ""
    for title, keys in panels.items():
        scale = 100 if "%" in title else 1
        lines = [Line(name, _over_epochs(history, key, scale)) for key, name in keys.items()]
        lines = [line for line in lines if line.points]
        if lines:
            which = line_legend(lines) if len(lines) > 1 else ""
            chart = line_chart(title, lines, x_title="epoch")
            figures += f"<figure><figcaption><h3>{title}</h3>{which}</figcaption>{chart}</figure>"
    return note(f"{counted(len(history), 'epoch')}.") + f'<div class="panels">{figures}</div>'


def _over_epochs(history: list[dict], key: str, scale: float) -> list[tuple[float, float]]:
    pairs = [(entry["epoch"], entry.get(key)) for entry in history]
    return [(epoch, scale * value) for epoch, value in pairs if value is not None and math.isfinite(value)]


def _bars(evaluation: Evaluation) -> str:
    occurs_C = (evaluation.states_NC == PRESENT).any(axis=0)
    per_label = evaluation.metrics["per_label"]
    ours, clip = per_label["sigrl"], per_label.get("clip_global", {})
    labels = [label for label, occurs in zip(evaluation.vocabulary.labels, occurs_C, strict=True) if occurs]
    labels.sort(key=lambda label: -ours[label.name])
    if not labels:
        return note("No label occurs in these pictures.")
    bars = [_bar(label.name, label.split, ours[label.name], clip.get(label.name)) for label in labels]
    half = MAX_BARS // 2
    groups = {"": bars}
    if len(bars) > MAX_BARS:
        groups = {f"The {half} best of {len(bars)}": bars[:half], f"The {half} worst": bars[-half:]}
    signs = [('<span class="swatch"></span>', "SigRL, seen label")]
    if any(label.split == "unseen" for label in labels):
        signs.append(('<span class="swatch unseen"></span><span class="diamond">◆</span>', "SigRL, unseen label"))
    if clip:
        signs.append(('<span class="swatch tick"></span>', "CLIP, global"))
    absent = int((~occurs_C).sum())
    left_out = f" Left out: {counted(absent, 'label')} without a picture." if absent else ""
    return (
        note(f"In percent, asked with all labels (GZSL), best first.{left_out}")
        + legend(signs)
        + "".join(
            f'<div class="group">{f"<h3>{title}</h3>" if title else ""}<ol class="bars">{"".join(group)}</ol></div>'
            for title, group in groups.items()
        )
    )


def _bar(name: str, split: str, ours: float, clip: float | None) -> str:
    mark = told = ""
    if clip is not None:
        mark = f'<span class="mark" style="left:{100 * clip:.1f}%" title="CLIP, global: {percent(clip)}"></span>'
        told = f'<span class="hidden">, CLIP {percent(clip)}</span>'
    return (
        f'<li class="{split}"><span class="name" title="{escape(name)}">{marked(name, split)}</span>'
        f'<span class="track"><span class="bar" style="width:{100 * ours:.1f}%"></span>{mark}</span>'
        f'<span class="value">{percent(ours)}{told}</span></li>'
    )


def _curves(evaluation: Evaluation) -> str:
    lines = []
    for row in headline.ordered(evaluation.metrics["rows"]):
        curve = precision_recall_curve(evaluation.scores[row["name"]]["gzsl"], evaluation.states_NC)
        if len(curve.recall):
            area = float(np.sum(np.diff(curve.recall, prepend=0) * curve.precision))
            kept = np.unique(np.searchsorted(curve.recall, np.linspace(curve.recall[0], 1, CURVE_POINTS)))
            kept = kept.clip(max=len(curve.recall) - 1)
            points = list(zip(100 * curve.recall[kept], 100 * curve.precision[kept], strict=True))
            lines.append(Line(f"{headline.row_title(row['name'])} (AP {percent(area)})", points))
    if not lines:
        return note("No label occurs in these pictures, so there is nothing to recall.")
    title = "Precision over recall, in percent"
    chart = line_chart(title, lines, x_title="recall (%)", y_title="precision (%)", percent=True)
    told = note("All pictures and all labels together (micro), asked with all labels (GZSL).")
    return f'{told}<figure class="wide">{line_legend(lines)}{chart}</figure>'


def _calibration(evaluation: Evaluation) -> str:
    found = evaluation.metrics["calibration"]
    if found is None:
        return note("Scores rank labels and are no probabilities. calibrate.py makes probabilities of them.")
    figures, rows = "", ""
    for split, values in found.items():
        lines = [Line("as told = as it comes true", [(0.0, 0.0), (100.0, 100.0)])]
        lines += [
            Line(f"{name} (error {percent(values[f'ece_{name}'])})", [(100 * x, 100 * y) for x, y in points])
            for name, points in values["reliability"].items()
        ]
        title = f"{split.capitalize()} labels"
        chart = line_chart(f"{title}: share present over probability", lines, x_title="probability (%)", percent=True)
        figures += f"<figure><figcaption><h3>{title}</h3>{line_legend(lines)}</figcaption>{chart}</figure>"
        cells = "".join(f"<td>{percent(values[f'f1_{name}'])}</td>" for name in ("raw_half", "half", "thresholds"))
        rows += f'<tr><th scope="row">{title}</th>{cells}</tr>'
    heads = ("F1, score as probability, tag from 50", "F1, calibrated, from 50", "F1, calibrated, own thresholds")
    return (
        note(
            "Over all pictures and labels together, how often a label of some probability is there; in brackets the "
            "expected calibration error. All in percent, by scores that do not depend on the vocabulary asked."
        )
        + f'<div class="panels">{figures}</div>'
        + scrollable(
            "F1 by threshold",
            '<table class="headline"><thead><tr><td></td>'
            + "".join(f'<th scope="col">{head}</th>' for head in heads)
            + f"</tr></thead><tbody>{rows}</tbody></table>",
        )
    )


def _facts(evaluation: Evaluation, tagger: Tagger) -> str:
    metrics, config = evaluation.metrics, tagger.checkpoint.config
    seen, unseen = (metrics["labels"][split] for split in ("seen", "unseen"))
    trained = f"{counted(config.training.epochs, 'epoch')} of batches of {config.training.batch_size}"
    return definitions(
        [
            ("Pictures", f"{metrics['pictures']:,}"),
            ("Labels", f"{seen + unseen:,}: {seen:,} seen, {unseen:,} unseen"),
            ("Vocabulary", f"<code>{escape(metrics['vocabulary_hash'])}</code>"),
            ("Data", f"<code>{escape(metrics['data'])}</code>"),
            *(
                (f"Checkpoint, {headline.row_title(name)}", f"<code>{escape(uri)}</code>")
                for name, uri in metrics["checkpoints"].items()
            ),
            ("Backbone", f"{escape(config.backbone.name)}, {counted(config.backbone.frozen_blocks, 'block')} frozen"),
            ("Training", f"{trained}, seed {config.training.seed}"),
        ]
    )
