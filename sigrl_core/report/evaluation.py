"""The page about an evaluation, report.html."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sigrl_core.config import EvaluateConfig
from sigrl_core.data import images
from sigrl_core.data.dataset import ShardDataset
from sigrl_core.data.label_states import ABSENT, PRESENT, UNKNOWN
from sigrl_core.data.shards import ShardFolder
from sigrl_core.errors import ShardError, StorageError
from sigrl_core.evaluation.evaluator import Evaluation, Evaluator, ScoredBatch, evaluate
from sigrl_core.evaluation.inputs import open_test_split
from sigrl_core.inference.heat_map import draw
from sigrl_core.inference.tagger import Tagger, top_tags
from sigrl_core.io import storage
from sigrl_core.io.progress import progress_line
from sigrl_core.io.resumable_job import MANIFEST, PLAN, is_occupied
from sigrl_core.labels.vocabulary import Label
from sigrl_core.metrics import precision_recall_curve
from sigrl_core.report import headline
from sigrl_core.report.charts import Line, Panel, line_chart
from sigrl_core.report.label_graph import label_graph
from sigrl_core.report.page import percent, render
from sigrl_core.report.thumbnails import data_uri, thumbnail

METRICS = "metrics.json"
MAX_BARS = 80
CURVE_POINTS = 201
NUM_IMAGES = 24
MIN_TAGS = 3
NUM_HEAT_MAPS = 4
HEAT_MAP = 160
"""Pixels on a side of a heat map."""

JUDGEMENTS = {PRESENT: ("right", "✓"), ABSENT: ("wrong", "✗"), UNKNOWN: ("unknown", "?")}


def evaluate_to_report(
    config: EvaluateConfig, score: Callable[[Evaluator, ShardDataset], Iterable[ScoredBatch]] | None = None
) -> dict[str, Any]:
    """Evaluates a checkpoint, writes report.html and then metrics.json, and returns the metrics.

    Args:
        config: checkpoints, data and output folder.
        score: scores all images with the evaluator's checkpoints in other processes and yields batches in order. None
            scores them in this process.

    Raises:
        CheckpointError, ShardError: an input cannot be used, or inputs have different vocabularies.
        StorageError: `config.out` cannot be written.
    """
    check_report_folder(config.out)
    folder, evaluator = ShardFolder.open(config.data), Evaluator.load(config)
    dataset = evaluator.open_images(folder)
    folder.check_image_size(evaluator.tagger.model.backbone.image_size, "--allow-enlarged", config.allow_enlarged)
    with progress_line("evaluate", len(dataset), unit="images") as advance:
        batches = score(evaluator, dataset) if score else evaluator.score(dataset)
        evaluation = evaluate(evaluator, folder, advance, batches)
    tagger = evaluator.tagger
    storage.make_folder(config.out)
    write_report(evaluation, folder, tagger, tagger.checkpoint.metrics["history"], config.out)
    storage.write_json(storage.join(config.out, METRICS), evaluation.metrics)
    return evaluation.metrics


def check_report_folder(out: str) -> None:
    """Raises StorageError for a folder with files of something else, so that none of them is overwritten."""
    names = (PLAN, MANIFEST, METRICS, "report.html", "quickstart.json", "run.json", "checkpoint")
    out = storage.absolute(out)
    if is_occupied(out) and not any(storage.exists(storage.join(out, name)) for name in names):
        raise StorageError(f"{out}: holds files of something else (no {METRICS}); choose another --out")


def write_report(evaluation: Evaluation, folder: ShardFolder, tagger: Tagger, history: list[dict], out: str) -> None:
    """Writes `report.html` into a folder.

    Args:
        evaluation: the result of `evaluate` with `tagger` on `folder`.
        folder: the shards, or features that were computed from shards.
        tagger: the evaluated checkpoint.
        history: the metrics of each epoch of its training (metrics.jsonl); may be empty.
        out: output folder, local or s3://.

    Raises:
        ShardError: `folder` is not the one that was evaluated.
        StorageError: `out` cannot be written.
    """
    metrics, source = evaluation.metrics, folder.image_folder()
    rows = None if source is None else open_test_split(source)
    page = render(
        "evaluation.html.j2",
        metrics=metrics,
        num_images=metrics["images"],
        num_labels=len(evaluation.vocabulary),
        reached=headline.lead(metrics),
        headline=headline.table(metrics),
        num_epochs=len(history),
        training=_training_panels(history),
        labels=_label_bars(evaluation),
        curves=_precision_recall(evaluation),
        calibration=_calibration(metrics["calibration"]),
        graph=label_graph(evaluation, tagger),
        min_tags=MIN_TAGS,
        examples=None if rows is None else _examples(evaluation, rows),
        heat_maps=None if rows is None else _heat_maps(evaluation, rows, tagger),
        checkpoints=[(headline.row_title(name), uri) for name, uri in metrics["checkpoints"].items()],
        config=tagger.checkpoint.config,
    )
    storage.write_bytes(storage.join(out, "report.html"), page)


# ---- charts ----


def _training_panels(history: Sequence[dict]) -> list[Panel]:
    if not history:
        return []
    other = ("distillation", "gradient_norm", "seconds", "data_wait_s", "images_per_s", "memory_mb")
    losses = [key for key in history[0] if key.startswith("train/") and key.removeprefix("train/") not in other]
    curves = {
        "Loss": {key: "total" if key == "train/loss" else key.removeprefix("train/") for key in losses},
        "Distillation": {"train/distillation": "distillation"},
        "Validation mAP, seen labels (%)": {"validation/map": "validation mAP"},
        "Seconds per epoch": {"train/seconds": "whole epoch", "train/data_wait_s": "waiting for data"},
    }
    panels = []
    for title, names in curves.items():
        lines = [Line(name, _over_epochs(history, key, 100 if "%" in title else 1)) for key, name in names.items()]
        if lines := [line for line in lines if line.points]:
            chart = line_chart(title, lines, x_title="epoch")
            panels.append(Panel(title, chart, [line.name for line in lines] if len(lines) > 1 else ()))
    return panels


def _over_epochs(history: Sequence[dict], key: str, scale: float) -> list[tuple[float, float]]:
    values = [(entry["epoch"], entry.get(key)) for entry in history]
    return [(epoch, scale * value) for epoch, value in values if value is not None and math.isfinite(value)]


def _precision_recall(evaluation: Evaluation) -> dict[str, Any] | None:
    """Returns the curve of each model; None if no label occurs."""
    lines = []
    for row in headline.sorted_rows(evaluation.metrics["rows"]):
        curve = precision_recall_curve(evaluation.scores[row["name"]]["gzsl"], evaluation.states_NC)
        if len(curve.recall):
            area = float(np.sum(np.diff(curve.recall, prepend=0) * curve.precision))
            kept = np.unique(np.searchsorted(curve.recall, np.linspace(curve.recall[0], 1, CURVE_POINTS)))
            kept = kept.clip(max=len(curve.recall) - 1)
            points = list(zip(100 * curve.recall[kept], 100 * curve.precision[kept], strict=True))
            lines.append(Line(f"{headline.row_title(row['name'])} (AP {percent(area)})", points))
    if not lines:
        return None
    title = "Precision over recall, in percent"
    chart = line_chart(title, lines, x_title="recall (%)", y_title="precision (%)", percent=True)
    return {"names": [line.name for line in lines], "chart": chart}


def _calibration(calibration: dict[str, Any] | None) -> dict[str, Any] | None:
    if calibration is None:
        return None
    panels, rows = [], []
    for group, values in calibration.items():
        lines = [Line("perfect calibration", [(0.0, 0.0), (100.0, 100.0)])]
        lines += [
            Line(f"{name} (error {percent(values[f'ece_{name}'])})", [(100 * x, 100 * y) for x, y in points])
            for name, points in values["reliability"].items()
        ]
        title = f"{group.capitalize()} labels"
        chart = line_chart(f"{title}: share present over probability", lines, x_title="probability (%)", percent=True)
        panels.append(Panel(title, chart, [line.name for line in lines]))
        rows.append((title, [values[f"f1_{name}"] for name in ("raw_half", "half", "thresholds")]))
    return {"panels": panels, "rows": rows}


def _label_bars(evaluation: Evaluation) -> dict[str, Any]:
    """Returns (label, average precision, that of CLIP or None) in groups of a heading and bars, best first."""
    occurs_C = (evaluation.states_NC == PRESENT).any(axis=0)
    per_label = evaluation.metrics["per_label"]
    sigrl, clip = per_label["sigrl"], per_label.get("clip_global", {})
    labels = [label for label, occurs in zip(evaluation.vocabulary.labels, occurs_C, strict=True) if occurs]
    bars = [(label, sigrl[label.name], clip.get(label.name)) for label in labels]
    bars.sort(key=lambda bar: -bar[1])
    half = MAX_BARS // 2
    groups = [("", bars)] if bars else []
    if len(bars) > MAX_BARS:
        groups = [(f"The {half} best of {len(bars)}", bars[:half]), (f"The {half} worst", bars[-half:])]
    return {
        "groups": groups,
        "num_absent": int((~occurs_C).sum()),
        "any_unseen": any(label.group == "unseen" for label in labels),
        "any_clip": bool(clip),
    }


# ---- images ----


def _spread(total: int, count: int) -> list[int]:
    """Returns `count` row numbers, or all if there are fewer, at equal distances."""
    return sorted({round(number) for number in np.linspace(0, total - 1, min(count, total))})


def _examples(evaluation: Evaluation, rows: ShardDataset) -> list[dict[str, Any]]:
    """Returns images with their best labels, each label with a judgement and its sign, and with their true labels."""
    vocabulary, examples = evaluation.vocabulary, []
    numbers = _spread(len(evaluation.uris), NUM_IMAGES)
    for number, jpeg in zip(numbers, _read_images(evaluation, rows, numbers), strict=True):
        states_C = evaluation.states_NC[number]
        true = [label for label, state in zip(vocabulary.labels, states_C, strict=True) if state == PRESENT]
        tags = top_tags(evaluation.scores["sigrl"]["gzsl"][number], vocabulary, max(MIN_TAGS, len(true)))
        positions = [vocabulary.index[name] for name in tags.labels]
        examples.append(
            {
                "number": number + 1,
                "uri": evaluation.uris[number],
                "image": thumbnail(jpeg),
                "tags": [(vocabulary.labels[c], *JUDGEMENTS[int(states_C[c])]) for c in positions],
                "true": true,
            }
        )
    return examples


def _heat_maps(evaluation: Evaluation, rows: ShardDataset, tagger: Tagger) -> list[dict[str, Any]]:
    """Returns images as the model receives them, each with the heat maps of its best labels."""
    vocabulary, numbers = evaluation.vocabulary, _spread(len(evaluation.uris), NUM_HEAT_MAPS)
    jpegs = list(_read_images(evaluation, rows, numbers))
    tags = tagger.tag(jpegs, vocabulary, top_k=MIN_TAGS, heat_maps=True)
    heat_maps = []
    for number, jpeg, image_tags in zip(numbers, jpegs, tags, strict=True):
        pixels_HWC = images.centre_crop_array(jpeg, HEAT_MAP)
        maps: list[tuple[Label, str]] = [
            (vocabulary.labels[vocabulary.index[name]], data_uri(draw(map_HW, pixels_HWC)))
            for name, map_HW in zip(image_tags.labels, image_tags.heat_maps, strict=True)
        ]
        src = data_uri(Image.fromarray(pixels_HWC))
        heat_maps.append({"number": number + 1, "uri": evaluation.uris[number], "src": src, "maps": maps})
    return heat_maps


def _read_images(evaluation: Evaluation, rows: ShardDataset, numbers: Sequence[int]) -> Iterator[bytes]:
    """Yields the encoded images of these rows; raises ShardError if they are not those that were evaluated."""
    again = "run evaluate.py again"
    if len(rows) != (expected := len(evaluation.uris)):
        raise ShardError(f"{rows.folder.uri}: has {len(rows)} rows, but {expected} were evaluated; {again}")
    for number in numbers:
        uri, jpeg, _ = rows.read(number)
        if uri != (expected := evaluation.uris[number]):
            raise ShardError(f"{rows.folder.uri}: row {number} is {uri}, but {expected} was evaluated; {again}")
        yield jpeg
