"""The page about a finished shard folder: what went in, what came out, and what a training run will find."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sigrl_core import storage
from sigrl_core.progress import progress_line
from sigrl_core.records import ABSENT, PRESENT, UNKNOWN, ShardFolder
from sigrl_core.report.charts import shares
from sigrl_core.report.contents import Contents, Sample, count_contents
from sigrl_core.report.label_counts import FEW, label_section, together_section
from sigrl_core.report.markup import Section, counted, definitions, escape, marked, note, shortened, whole_page
from sigrl_core.report.picture_sizes import in_bytes, size_section
from sigrl_core.report.pictures import thumbnail
from sigrl_core.vocabulary import Vocabulary

NAME = "dataset.html"
MAX_TAGS = 12
"""Labels named below a picture."""
MAX_ABSENT = 6
"""Absent labels are named up to here and counted beyond."""
NUM_EXAMPLES = 5
"""Quarantined files named for each reason."""
MAX_LETTERS = 300
"""Of a quarantined file's name, and of what is wrong with it."""

REASONS = {
    "truncated": "cut short or damaged",
    "not_an_image": "not a picture at all",
    "too_many_pixels": "larger than max_pixels, left undecoded",
    "empty": "without bytes or without pixels",
    "unreachable": "missing, denied, or too large to fetch",
    "unsupported": "pictures of a kind that is not read",
}
"""images.REASONS in words."""

ANNOTATED = {
    "all": "Labels that a picture does not list are absent",
    "seen": "Seen labels that a picture does not list are absent, unseen ones unknown",
}
TOLD = {
    "full": "Training is told all of it.",
    "positives-only": "Training is told what is present; absent became unknown, except in held-out pictures.",
    "single-positive": "Training is told one present label a picture and nothing else; held-out pictures keep all.",
}


def dataset_page(folder: ShardFolder) -> str:
    """Where the folder's page is, which is written if there is none; raises as `write_dataset_page`."""
    uri = storage.join(folder.uri, NAME)
    return uri if storage.exists(uri) else write_dataset_page(folder)


def write_dataset_page(folder: ShardFolder) -> str:
    """Writes `dataset.html` beside the manifest and returns its location; the same folder gives the same bytes.

    Raises:
        ShardError: a shard is not what the manifest says.
        StorageError: the folder cannot be read or written.
    """
    with progress_line("dataset page", len(folder.shard_rows), unit="shards") as advance:
        contents = count_contents(folder, advance)
    sections = [
        Section("overview", "What is here", _overview(contents, folder), "Overview"),
        Section("labels", "Labels", label_section(contents, folder.vocabulary)),
        Section("together", "Labels that occur together", together_section(contents, folder.vocabulary), "Together"),
        Section("sizes", "Sizes of stored pictures", size_section(contents), "Sizes"),
        Section("pictures", "Pictures and their labels", _pictures(contents.samples, folder.vocabulary), "Pictures"),
        Section("quarantine", "Quarantine", _quarantine(folder.read_quarantine())),
        Section("facts", "How it was made", _facts(folder), "Facts"),
    ]
    uri = storage.join(folder.uri, NAME)
    storage.write_bytes(uri, whole_page("SigRL dataset", _lead(contents, folder), sections))
    return uri


def _lead(contents: Contents, folder: ShardFolder) -> str:
    occur, C = int((contents.present_C > 0).sum()), len(folder.vocabulary)
    listed = counted(folder.manifest["rows_in"], "listed picture")
    labels = f"{'all' if occur == C else f'{occur:,} of'} {counted(C, 'label')}"
    shown = f"they show <strong>{labels}</strong>" if C else "no labels are asked of them"
    return f"<strong>{folder.num_rows:,}</strong> of {listed} can be used; {shown}."


def _overview(contents: Contents, folder: ShardFolder) -> str:
    manifest, rows = folder.manifest, folder.num_rows
    unseen = len(folder.vocabulary.positions("unseen"))
    figures = {
        "Pictures": f"{rows:,}",
        "Labels": f"{len(folder.vocabulary):,}" + (f" <small>{unseen:,} unseen</small>" if unseen else ""),
        "Held out": f"{100 * contents.held_out / rows:.1f} % <small>{counted(contents.held_out, 'picture')}</small>",
        "Shards": f"{len(folder.shard_rows):,}",
        "Stored": in_bytes(contents.shard_bytes),
    }
    config = manifest.get("config", {})
    rule = ""
    if config:
        rule = note(
            f"{ANNOTATED[config.get('annotated', 'all')]}; where a picture lists what is absent, all else is unknown. "
            f"{TOLD[config.get('labels', 'full')]}"
        )
    parts = [
        ("for training", rows - contents.held_out),
        ("held out for validation" + (" and test" if manifest["split"]["test"] else ""), contents.held_out),
        ("quarantined", manifest["quarantined"]),
        ("duplicate" if manifest["duplicates"] == 1 else "duplicates", manifest["duplicates"]),
    ]
    tiles = "".join(f"<div><dt>{term}</dt><dd>{value}</dd></div>" for term, value in figures.items())
    return (
        f'<dl class="figures">{tiles}</dl>'
        + note(f"Every one of the {counted(manifest['rows_in'], 'listed picture')} is one of these:")
        + shares(parts)
        + rule
        + _warnings(contents, folder)
    )


def _warnings(contents: Contents, folder: ShardFolder) -> str:
    """What somebody should know before training, each with a link to where more is said."""
    seen = np.array([label.split == "seen" for label in folder.vocabulary.labels], bool)
    never = int((contents.present_C == 0).sum())
    held_only = int(((contents.present_C > 0) & (contents.trained_C == 0) & seen).sum())
    few = int(((contents.trained_C > 0) & (contents.trained_C < FEW) & seen).sum())
    found = [
        (never, counted(never, "label"), "never present", "labels"),
        (held_only, counted(held_only, "seen label"), "present in held-out pictures alone", "labels"),
        (few, counted(few, "seen label"), f"present in fewer than {FEW} pictures for training", "labels"),
        (
            int(contents.labels_each[0]),
            counted(int(contents.labels_each[0]), "picture"),
            "without any label",
            "pictures",
        ),
        (folder.manifest["quarantined"], counted(folder.manifest["quarantined"], "file"), "not usable", "quarantine"),
        (not contents.held_out, "Nothing", "held out for validation", "facts"),
    ]
    items = "".join(
        f'<li><a href="#{to}"><strong>{what}</strong> {why}</a></li>' for number, what, why, to in found if number
    )
    return f'<h3>Worth knowing</h3><ul class="worth">{items}</ul>' if items else ""


def _pictures(samples: Sequence[Sample], vocabulary: Vocabulary) -> str:
    cards = "".join(_card(sample, number, vocabulary) for number, sample in enumerate(samples, 1))
    told = f"{counted(len(samples), 'picture')} spread evenly over the shards"
    if len(vocabulary):
        told += (
            ", and over the labels from the most to the least frequent. Labels that are not named are absent, unless a "
            "picture says how many are unknown"
        )
    return f'{note(told + ".")}<ul class="pictures">{cards}</ul>'


def _card(sample: Sample, number: int, vocabulary: Vocabulary) -> str:
    present, absent, unknown = (np.flatnonzero(sample.states_C == state) for state in (PRESENT, ABSENT, UNKNOWN))

    def named(positions: np.ndarray) -> list[str]:
        labels = (vocabulary.labels[c] for c in positions)
        return [f'<span class="name">{marked(label.name, label.split)}</span>' for label in labels]

    tags = "".join(
        f'<li class="right"><span aria-hidden="true">✓</span>{name}</li>' for name in named(present[:MAX_TAGS])
    )
    if len(present) > MAX_TAGS:
        tags += f'<li class="unknown">and {len(present) - MAX_TAGS:,} more</li>'
    tags = tags or '<li class="unknown">no label</li>'
    if sample.held_out:
        tags += '<li class="held">held out</li>'
    told = ""
    if len(unknown):
        names = ", ".join(named(absent)) if 0 < len(absent) <= MAX_ABSENT else counted(len(absent), "label")
        told = note(f"Absent: {names}. Unknown: {counted(len(unknown), 'label')}.")
    uri = escape(sample.uri)
    picture = thumbnail(sample.jpeg, f'alt="Picture {number}, {uri}" title="{uri}"')
    where = f'<p class="soft uri" title="{uri}"><span class="name">{uri}</span></p>'
    size = f'<p class="soft">{sample.width} × {sample.height}</p>'
    return f'<li>{picture}{where}{size}<ul class="tags flow">{tags}</ul>{told}</li>'


def _quarantine(table: pa.Table) -> str:
    if not table.num_rows:
        return note("Empty: every listed file could be used.")
    counts = {row["values"]: row["counts"] for row in table["reason"].value_counts().to_pylist()}
    written = note(
        f"{counted(table.num_rows, 'file')} could not be used; quarantine.parquet names every one. The first "
        f"{NUM_EXAMPLES} of each reason:"
    )
    for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        examples = table.filter(pc.field("reason") == reason).slice(0, NUM_EXAMPLES).to_pylist()
        texts = ([escape(shortened(row[key], MAX_LETTERS)) for key in ("uri", "detail")] for row in examples)
        items = "".join(
            f'<li><span class="name">{uri}</span><span class="soft name">{detail}</span></li>' for uri, detail in texts
        )
        meaning = REASONS.get(reason, "")
        written += (
            f'<div class="group"><h3>{counted(count, "file")} {escape(meaning or reason)} '
            f'<code>{escape(reason)}</code></h3><ul class="examples">{items}</ul></div>'
        )
    return written


def _facts(folder: ShardFolder) -> str:
    manifest = folder.manifest
    rows = folder.shard_rows
    shown = [(key, value) for key, value in manifest.get("config", {}).items() if value is not None]
    return definitions(
        [
            *((key.replace("_", " "), f"<code>{escape(str(value))}</code>") for key, value in shown),
            ("rows per shard, stored", f"{min(rows):,} to {max(rows):,}" if min(rows) < max(rows) else f"{rows[0]:,}"),
            ("vocabulary hash", f"<code>{folder.vocabulary.hash}</code>"),
            ("manifest hash", f"<code>{escape(manifest['sha256'])}</code>"),
            ("schema", f"version {manifest['schema_version']}"),
            ("made by", f"SigRL on Ray {escape(manifest.get('code_version', 'of unknown version'))}"),
        ]
    )
