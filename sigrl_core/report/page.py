"""The page, section by section."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from importlib import resources
from string import Template

import numpy as np
from PIL import Image

from sigrl_core import images, storage
from sigrl_core.errors import ShardError
from sigrl_core.evaluation import Evaluation
from sigrl_core.heat_map import draw
from sigrl_core.metrics import precision_recall_curve
from sigrl_core.records import ABSENT, PRESENT, UNKNOWN, ShardFolder
from sigrl_core.report import headline
from sigrl_core.report.charts import Line, line_chart, line_legend
from sigrl_core.report.label_graph import label_graph
from sigrl_core.report.markup import counted, definitions, escape, legend, marked, note, percent, scrollable
from sigrl_core.tagger import Tagger, top_tags

MAX_BARS = 80
NUM_PICTURES = 24
MIN_TAGS = 3
NUM_HEAT_MAPS = 4
HEAT_MAP = 160
"""Pixels on a side of a heat map."""
THUMBNAIL = 224
"""Pixels of the short side of a picture on the page."""
CURVE_POINTS = 201

JUDGEMENTS = {PRESENT: ("right", "✓"), ABSENT: ("wrong", "✗"), UNKNOWN: ("unknown", "?")}


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
    template = Template(resources.files("sigrl_core.report").joinpath("page.html").read_text(encoding="utf-8"))
    page = template.substitute(
        lead=headline.lead(evaluation.metrics),
        table=headline.table(evaluation.metrics),
        protocols=headline.protocols(evaluation.metrics),
        training=_training(history),
        bars=_bars(evaluation),
        curves=_curves(evaluation),
        calibration=_calibration(evaluation),
        graph=label_graph(evaluation, tagger),
        pictures=_pictures(evaluation, folder),
        heat_maps=_heat_maps(evaluation, folder, tagger),
        facts=_facts(evaluation, tagger),
    )
    storage.write_bytes(storage.join(out, "report.html"), page.encode())


def _training(history: list[dict]) -> str:
    if not history:
        return note("No training history was given, so there are no curves.")
    apart = ("train/distillation", "train/seconds", "train/data_wait_s", "train/lr")
    losses = [key for key in history[0] if key.startswith("train/") and key not in apart]
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
    return f'<figure class="wide">{line_legend(lines)}{chart}</figure>'


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


def _pictures(evaluation: Evaluation, folder: ShardFolder) -> str:
    total = len(evaluation.uris)
    numbers = sorted({round(number) for number in np.linspace(0, total - 1, min(NUM_PICTURES, total))})
    jpegs = _read(evaluation, folder, numbers)
    cards = [_card(evaluation, number, jpeg) for number, jpeg in zip(numbers, jpegs, strict=True)]
    words = {"right": "right", "wrong": "wrong", "unknown": "not annotated"}
    signs = [(f'<span class="{kind}">{sign}</span>', words[kind]) for kind, sign in JUDGEMENTS.values()]
    return (
        note(
            f"{counted(len(cards), 'picture')} spread evenly over the set, each with its best labels by SigRL, asked "
            f"with all labels: as many as are true of it, {MIN_TAGS} at least."
        )
        + legend([*signs, ('<span class="diamond">◆</span>', "unseen label")])
        + f'<ul class="pictures">{"".join(cards)}</ul>'
    )


def _heat_maps(evaluation: Evaluation, folder: ShardFolder, tagger: Tagger) -> str:
    """A few pictures, each followed by where its best labels fit."""
    total = len(evaluation.uris)
    numbers = sorted({round(number) for number in np.linspace(0, total - 1, min(NUM_HEAT_MAPS, total))})
    jpegs = list(_read(evaluation, folder, numbers))
    told = tagger.tag(jpegs, evaluation.vocabulary, top_k=MIN_TAGS, heat_maps=True)
    rows = ""
    for number, jpeg, tags in zip(numbers, jpegs, told, strict=True):
        seen = images.centre_crop_array(jpeg, HEAT_MAP)
        uri = escape(evaluation.uris[number])
        rows += f'<li><img src="{_data(Image.fromarray(seen))}" alt="What the model sees of {uri}" title="{uri}"></li>'
        for name, map_HW in zip(tags.labels, tags.heat_maps, strict=True):
            split = evaluation.vocabulary.labels[evaluation.vocabulary.index[name]].split
            source, label = _data(draw(map_HW, seen)), escape(name)
            rows += (
                f'<li><img src="{source}" alt="Where {label} fits in picture {number + 1}">'
                f'<p class="name">{marked(name, split)}</p></li>'
            )
    return (
        note(
            f"{counted(len(numbers), 'picture')}, the square that the model sees, and where its {MIN_TAGS} best labels "
            "fit: bright is where a label fits best in that picture, whether or not it is there."
        )
        + f'<ul class="pictures heat">{rows}</ul>'
    )


def _data(picture: Image.Image) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(images.encode_jpeg(picture, 85)).decode()}"


def _read(evaluation: Evaluation, folder: ShardFolder, numbers: Sequence[int]) -> Iterator[bytes]:
    """The pictures of some rows, in row order, one shard in memory at a time."""
    start = 0
    for shard, rows in enumerate(folder.shard_rows):
        wanted = [number for number in numbers if start <= number < start + rows]
        if wanted:
            taken = folder.read_shard(shard, ["uri", "image"]).take([number - start for number in wanted]).to_pylist()
            for number, row in zip(wanted, taken, strict=True):
                if row["uri"] != evaluation.uris[number]:
                    raise ShardError(
                        f"{folder.uri}: row {number} is {row['uri']}, but {evaluation.uris[number]} was evaluated; "
                        "run evaluate.py again"
                    )
                yield row["image"]
        start += rows


def _card(evaluation: Evaluation, number: int, jpeg: bytes) -> str:
    """One picture with what is said of it and what is true of it."""
    vocabulary, states_C = evaluation.vocabulary, evaluation.states_NC[number]
    true = [label for label, state in zip(vocabulary.labels, states_C, strict=True) if state == PRESENT]
    said = top_tags(evaluation.scores["sigrl"]["gzsl"][number], vocabulary, max(MIN_TAGS, len(true)))
    tags = ""
    for position in (vocabulary.index[name] for name in said.labels):
        label, (kind, sign) = vocabulary.labels[position], JUDGEMENTS[int(states_C[position])]
        tags += (
            f'<li class="{kind}"><span aria-hidden="true">{sign}</span><span class="hidden">{kind}:</span>'
            f'<span class="name">{marked(label.name, label.split)}</span></li>'
        )
    truth = ", ".join(f'<span class="name">{marked(label.name, label.split)}</span>' for label in true) or "none"
    picture = images.resize_short_side(images.decode(jpeg, short_side=THUMBNAIL), THUMBNAIL)
    small = ' class="small"' if min(picture.size) < 100 else ""
    uri = escape(evaluation.uris[number])
    return (
        f'<li><img src="{_data(picture)}" alt="Picture {number + 1}, {uri}" title="{uri}"{small}>'
        f'<ul class="tags">{tags}</ul><p class="soft">True: {truth}</p></li>'
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
