"""The page about a shard folder, dataset.html: use of the listed images, labels, sizes, samples, quarantine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sigrl_core.config.deprecated import FIELDS, rename_keys
from sigrl_core.data.label_states import ABSENT, PRESENT, UNKNOWN
from sigrl_core.data.shards import ShardFolder
from sigrl_core.io import storage
from sigrl_core.io.progress import progress_line
from sigrl_core.labels.vocabulary import Label, Vocabulary
from sigrl_core.report.charts import Panel, histogram, ticks
from sigrl_core.report.contents import Contents, Sample, count_contents
from sigrl_core.report.page import counted, render
from sigrl_core.report.thumbnails import thumbnail

NAME = "dataset.html"
FEW = 10
"""The page warns of labels with fewer images."""
MAX_BARS = 80
MAX_ROWS = 1000
"""Rows of the table with all counts."""
MAX_TAGS = 12
"""Maximum number of label names below an image."""
MAX_ABSENT = 6
"""If an image has more absent labels, the page shows their number instead of their names."""

REASONS = {
    "truncated": "cut short or damaged",
    "not_an_image": "not an image at all",
    "too_many_pixels": "larger than max_pixels, left undecoded",
    "empty": "without bytes or without pixels",
    "unreachable": "missing, denied, or too large to fetch",
    "unsupported": "in an image format that is not supported",
}
"""images.REASONS in words."""

ANNOTATION_SCOPES = {
    "all": "Labels that an image does not list are absent",
    "seen": "Seen labels that an image does not list are absent, and unseen ones are unknown",
}
LABEL_POLICIES = {
    "full": "Training uses all labels as they are.",
    "positives-only": "Training uses present labels; absent ones became unknown, except in held-out images.",
    "single-positive": "Training uses one present label per image; held-out images keep all labels.",
}


def dataset_page(folder: ShardFolder) -> str:
    """Returns the location of the folder's page; writes the page if there is none. Raises as `write_dataset_page`."""
    uri = storage.join(folder.uri, NAME)
    return uri if storage.exists(uri) else write_dataset_page(folder)


def write_dataset_page(folder: ShardFolder) -> str:
    """Writes `dataset.html` beside the manifest and returns its location; the same folder gives the same bytes.

    Raises:
        ShardError: a shard differs from the manifest.
        StorageError: the folder cannot be read or written.
    """
    with progress_line("dataset page", len(folder.shard_rows), unit="shards") as advance:
        contents = count_contents(folder, advance)
    manifest, vocabulary, quarantined = folder.manifest, folder.vocabulary, folder.read_quarantine()
    config = rename_keys(manifest.get("config", {}), FIELDS["PreprocessConfig"])
    page = render(
        "dataset.html.j2",
        contents=contents,
        folder=folder,
        manifest=manifest,
        vocabulary=vocabulary,
        num_occurring=int((contents.present_C > 0).sum()),
        tiles=_tiles(contents, folder),
        parts=[
            ("for training", folder.num_rows - contents.held_out),
            ("held out for validation" + (" and test" if manifest["split"]["test"] else ""), contents.held_out),
            ("quarantined", manifest["quarantined"]),
            ("duplicate" if manifest["duplicates"] == 1 else "duplicates", manifest["duplicates"]),
        ],
        policy=_policy(config) if config else "",
        warnings=_warnings(contents, folder),
        states=_state_summary(contents) if len(vocabulary) else "",
        bars=[c for c in contents.order_C[:MAX_BARS] if contents.present_C[c]],
        missing=_missing_labels(contents, vocabulary),
        table=contents.order_C[:MAX_ROWS],
        together=[vocabulary.labels[c].name for c in contents.order_C[: len(contents.together_KK)]],
        closest=_closest(contents, vocabulary),
        sizes=_size_summary(contents),
        size_panels=_size_panels(contents),
        samples=[_sample(sample, vocabulary) for sample in contents.samples],
        num_quarantined=quarantined.num_rows,
        quarantine=_quarantine(quarantined),
        config=[(key.replace("_", " "), value) for key, value in config.items() if value is not None],
    )
    uri = storage.join(folder.uri, NAME)
    storage.write_bytes(uri, page)
    return uri


def _tiles(contents: Contents, folder: ShardFolder) -> list[tuple[str, str, str]]:
    unseen, held_out = len(folder.vocabulary.positions("unseen")), contents.held_out
    return [
        ("Images", f"{folder.num_rows:,}", ""),
        ("Labels", f"{len(folder.vocabulary):,}", f"{unseen:,} unseen" if unseen else ""),
        ("Held out", f"{100 * held_out / folder.num_rows:.1f} %", counted(held_out, "image")),
        ("Shards", f"{len(folder.shard_rows):,}", ""),
        ("Stored", _in_bytes(contents.shard_bytes), ""),
    ]


def _policy(config: dict[str, Any]) -> str:
    scope, policy = config.get("annotation_scope", "all"), config.get("label_policy", "full")
    return (
        f"{ANNOTATION_SCOPES[scope]}; if an image lists absent labels, all others are unknown. {LABEL_POLICIES[policy]}"
    )


def _warnings(contents: Contents, folder: ShardFolder) -> list[tuple[str, str, str]]:
    """Returns what to check before training: subject, problem, and the section with more about it."""
    present_C, training_C = contents.present_C, contents.training_C
    seen_C = np.array([label.group == "seen" for label in folder.vocabulary.labels], bool)
    never = int((present_C == 0).sum())
    held_out_only = int(((present_C > 0) & (training_C == 0) & seen_C).sum())
    few = int(((training_C > 0) & (training_C < FEW) & seen_C).sum())
    unlabelled = int(contents.images_by_num_labels[0])
    quarantined = folder.manifest["quarantined"]
    warnings = [
        (never, counted(never, "label"), "never present", "labels"),
        (held_out_only, counted(held_out_only, "seen label"), "present in held-out images only", "labels"),
        (few, counted(few, "seen label"), f"present in fewer than {FEW} images for training", "labels"),
        (unlabelled, counted(unlabelled, "image"), "without any label", "images"),
        (quarantined, counted(quarantined, "file"), "not usable", "quarantine"),
        (not contents.held_out, "Nothing", "held out for validation", "facts"),
    ]
    return [(subject, problem, anchor) for applies, subject, problem, anchor in warnings if applies]


# ---- labels ----


def _missing_labels(contents: Contents, vocabulary: Vocabulary) -> list[tuple[str, str, list[Label]]]:
    """Returns labels without images, and seen labels without images for training: title, meaning, labels."""
    never = [vocabulary.labels[c] for c in np.flatnonzero(contents.present_C == 0)]
    occurring = [vocabulary.labels[c] for c in np.flatnonzero((contents.present_C > 0) & (contents.training_C == 0))]
    held_out_only = [label for label in occurring if label.group == "seen"]
    groups = [
        ("Never present", "No image has them, so they can be neither measured nor learned from this folder.", never),
        ("Held out only", "Seen labels that only held-out images have, so training does not use them.", held_out_only),
    ]
    return [group for group in groups if group[2]]


def _state_summary(contents: Contents) -> str:
    states = {"present": contents.present_C, "absent": contents.absent_C, "unknown": contents.unknown_C}
    totals = {state: int(counts_C.sum()) for state, counts_C in states.items()}
    total = sum(totals.values())
    shares = [
        f"{100 * number / total:.1f} % {state}" if number else f"none {state}" for state, number in totals.items()
    ]
    images = contents.images_by_num_labels
    return (
        f"Of {total:,} label states (images × labels) {', '.join(shares)}. An image has "
        f"{totals['present'] / max(1, int(images.sum())):.1f} labels present on average, {len(images) - 1} at most."
    )


def _closest(contents: Contents, vocabulary: Vocabulary) -> list[tuple[str, str, float]]:
    """Returns the three highest shares: a frequent label, another one, and the percentage of the first with both."""
    names = [vocabulary.labels[c].name for c in contents.order_C]
    count_K = contents.together_KK.diagonal()
    percent_KK = np.where((count_K >= FEW)[:, None], 100 * contents.together_KK / np.maximum(count_K, 1)[:, None], 0)
    np.fill_diagonal(percent_KK, 0)
    largest = [np.unravel_index(i, percent_KK.shape) for i in np.argsort(-percent_KK, axis=None, kind="stable")[:3]]
    return [(names[i], names[j], float(percent_KK[i, j])) for i, j in largest if percent_KK[i, j] > 0]


# ---- sizes ----


def _size_summary(contents: Contents) -> str:
    widths, heights = contents.widths_N.astype(np.int64), contents.heights_N.astype(np.int64)
    sizes, counts = np.unique(widths << 32 | heights, return_counts=True)
    frequent = [f"{sizes[i] >> 32} × {sizes[i] & 0xFFFFFFFF}" for i in np.argsort(-counts, kind="stable")[:3]]
    which = f"There are {len(sizes):,} different sizes, most often {', '.join(frequent)}."
    summary = which if len(sizes) > 1 else f"All are {frequent[0]}."
    average = f"Shard files hold {_in_bytes(contents.shard_bytes / len(widths))} per image, labels included."
    sampled = len(contents.image_bytes)
    partial = f" File sizes are those of the {sampled:,} images in the shards of the samples."
    return f"Columns count images. {summary} {average}{partial if sampled < len(widths) else ''}"


def _size_panels(contents: Contents) -> list[Panel]:
    return [
        _distribution("Width", contents.widths_N.astype(np.int64), "pixels"),
        _distribution("Height", contents.heights_N.astype(np.int64), "pixels"),
        _aspect_ratios(np.log2(contents.widths_N / contents.heights_N)),
        _distribution("File size", contents.image_bytes / 1000, "kB"),
    ]


def _distribution(title: str, values: np.ndarray, unit: str) -> Panel:
    is_integer = unit == "pixels"
    low, median, high = (float(value) for value in np.quantile(values, (0, 0.5, 1)))
    low_text, median_text, high_text = (f"{x:,.0f}" if is_integer else f"{x:.3g}" for x in (low, median, high))
    if low == high:
        return Panel(title, caption=f"all {low_text} {unit}")
    end = 1.5 * float(np.quantile(values, 0.99, method="lower"))
    beyond = int((values > end).sum()) if high > end else 0
    edges = ticks(low, min(high, end), steps=24, whole=is_integer)
    counts = np.histogram(np.minimum(values, edges[-1]), edges)[0].tolist()
    caption = f"{low_text} to {high_text} {unit}, median {median_text}"
    x_title = unit + (f"; the last column includes {counted(beyond, 'larger one')}" if beyond else "")
    x_ticks = [(tick, f"{tick:g}") for tick in ticks(edges[0], edges[-1], whole=is_integer)]
    chart = histogram(f"{title} of images: {caption}", counts, edges, x_title=x_title, x_ticks=x_ticks)
    return Panel(title, chart, caption=caption)


def _aspect_ratios(log_ratios: np.ndarray) -> Panel:
    """Draws width over height on a scale where 1:2 is as far from the middle as 2:1."""
    edges = ((np.arange(26) - 12.5) / 6).tolist()
    counts = np.histogram(np.clip(log_ratios, edges[0], edges[-1]), edges)[0].tolist()
    names = {"1:4": -2, "1:2": -1, "2:3": -np.log2(1.5), "1:1": 0, "3:2": np.log2(1.5), "2:1": 1, "4:1": 2}
    square = abs(log_ratios) < 1e-9
    portrait, landscape = int((log_ratios[~square] < 0).sum()), int((log_ratios[~square] > 0).sum())
    caption = f"{portrait:,} portrait, {int(square.sum()):,} square, {landscape:,} landscape"
    chart = histogram(
        f"Shape of images: {caption}",
        counts,
        edges,
        x_title="width : height",
        x_ticks=[(float(x), name) for name, x in names.items()],
        format_edge=lambda edge: f"{2**edge:.2f}",
    )
    return Panel("Shape", chart, caption=caption)


def _in_bytes(number: float) -> str:
    """Returns a number of bytes in units of a thousand, with three digits."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} B"


# ---- samples and quarantine ----


def _sample(sample: Sample, vocabulary: Vocabulary) -> dict[str, Any]:
    present, absent, unknown = (np.flatnonzero(sample.states_C == state) for state in (PRESENT, ABSENT, UNKNOWN))
    return {
        **sample._asdict(),
        "image": thumbnail(sample.jpeg),
        "present": [vocabulary.labels[c] for c in present[:MAX_TAGS]],
        "more": max(0, len(present) - MAX_TAGS),
        "absent": [vocabulary.labels[c] for c in absent] if len(absent) <= MAX_ABSENT else [],
        "num_absent": len(absent),
        "unknown": len(unknown),
    }


def _quarantine(table: pa.Table) -> list[dict[str, Any]]:
    """Returns one group per reason, the most frequent first."""
    counts = {row["values"]: row["counts"] for row in table["reason"].value_counts().to_pylist()}
    return [
        {
            "reason": reason,
            "meaning": REASONS.get(reason, reason),
            "count": count,
            "examples": table.filter(pc.field("reason") == reason).slice(0, 5).to_pylist(),
        }
        for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
