"""The page about a folder of tags, tagging.html: tags, speed and cost of the last run, and errors."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from sigrl_core.config import TagConfig
from sigrl_core.inference.batch import STAGES
from sigrl_core.io import storage
from sigrl_core.io.resumable_job import Partition
from sigrl_core.report.dataset import REASONS
from sigrl_core.report.page import render
from sigrl_core.report.thumbnails import thumbnail

NAME = "tagging.html"
MAX_BARS = 60
MAX_EXAMPLES = 24


class Run(NamedTuple):
    """The run of the command that writes the page.

    Attributes:
        seconds: duration of the run.
        workers: number of worker processes.
        price_per_hour: of all machines together; None if it was not given.
    """

    seconds: float
    workers: int
    price_per_hour: float | None

    def price_of_a_million(self, images: int) -> str:
        """Returns the price of a million images at the speed of this run; empty if the price is unknown."""
        if self.price_per_hour is None or not images:
            return ""
        return f"{self.price_per_hour / 3600 * self.seconds / images * 1e6:,.2f}"


class Summary(NamedTuple):
    """What the records of all partitions contain together.

    Attributes:
        images: number of images that this run read.
        seconds: stage -> seconds that the workers of this run spent in it.
        labels: label -> number of images in the whole folder that have it as a tag.
        examples: images of the whole folder, as the model received them.
    """

    images: int
    seconds: dict[str, float]
    labels: Counter[str]
    examples: list[dict[str, Any]]

    @classmethod
    def from_records(
        cls, records: Iterable[dict[str, Any]], parts: Sequence[Partition], processed: Collection[str]
    ) -> Summary:
        """Adds up the records of all partitions; `processed` has the names of those that this run worked on."""
        images, examples = 0, []
        seconds, labels = Counter[str](dict.fromkeys(STAGES, 0)), Counter[str]()
        for part, record in zip(parts, records, strict=True):
            labels.update(record["labels"])
            examples += record["examples"]
            if part.name in processed:
                work = record["work"]
                images += work["images"] if "images" in work else work["pictures"]  # version 0.1.0
                seconds.update(work["seconds"])
        return cls(images, dict(seconds), labels, examples)

    def describe(self, run: Run) -> str:
        """Returns speed and price of this run in one line."""
        if not self.images:
            return "nothing new to tag"
        busy = sum(self.seconds.values()) or 1.0
        stages = ", ".join(f"{stage} {100 * self.seconds[stage] / busy:.0f} %" for stage in STAGES)
        price = run.price_of_a_million(self.images)
        cost = f"; {price} per million at {run.price_per_hour:g} an hour" if price else ""
        speed = f"{self.images:,} images in {run.seconds:,.0f} s, {self.images / run.seconds:,.1f} per second"
        return f"{speed} ({stages}){cost}"


def write_tagging_page(config: TagConfig, manifest: dict[str, Any], summary: Summary, run: Run) -> None:
    """Writes `tagging.html` into the folder; raises StorageError if that fails."""
    labels, examples = summary.labels.most_common(), summary.examples
    facts = ("images", "corpus", "model", "vocabulary", "top_k", "threshold", "precision", "format", "code_version")
    page = render(
        "tagging.html.j2",
        manifest=manifest,
        tiles=_tiles(manifest, summary, run),
        outcomes=[("tagged", manifest["tagged"])] + [(REASONS[name], n) for name, n in manifest["errors"].items()],
        workers=run.workers,
        stages=[(f"ms: {stage}", round(1000 * summary.seconds[stage])) for stage in STAGES] if summary.images else [],
        num_labels=len(labels),
        label_bars=[(name, 100 * count / labels[0][1], f"{count:,}") for name, count in labels[:MAX_BARS]],
        examples=[
            {**example, "image": thumbnail(base64.b64decode(example["jpeg"]))}
            for example in examples[:: -(-len(examples) // MAX_EXAMPLES) or 1]
        ],
        errors=[(name, f"{count:,}: {REASONS[name]}") for name, count in manifest["errors"].items()],
        facts=[("checkpoint", config.checkpoint), *((name, manifest[name]) for name in facts)],
    )
    storage.write_bytes(storage.join(config.out, NAME), page)


def _tiles(manifest: dict[str, Any], summary: Summary, run: Run) -> list[tuple[str, str, str]]:
    tags = summary.labels.total()
    tiles = [
        ("Keys", f"{manifest['rows']:,}", ""),
        ("Tagged", f"{manifest['tagged']:,}", ""),
        ("Tags", f"{tags:,}", f"{tags / max(manifest['tagged'], 1):.1f} per image"),
        ("This run", f"{summary.images:,}", f"images in {run.seconds:,.0f} s"),
        ("Speed", f"{summary.images / run.seconds:,.1f}", "images per second"),
    ]
    if price := run.price_of_a_million(summary.images):
        tiles.append(("Cost", price, f"per million, at {run.price_per_hour:g} an hour"))
    return tiles
