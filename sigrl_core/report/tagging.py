"""The page about a tagged folder: what was found, how long what took, and what could not be read."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from sigrl_core import storage
from sigrl_core.config import TagConfig
from sigrl_core.parts import Part
from sigrl_core.report.charts import shares
from sigrl_core.report.dataset import REASONS
from sigrl_core.report.markup import Section, counted, definitions, escape, note, whole_page
from sigrl_core.report.pictures import thumbnail
from sigrl_core.tagging import STAGES

NAME = "tagging.html"
MAX_BARS = 60
MAX_EXAMPLES = 24


class Run(NamedTuple):
    """How the command went that wrote the page: seconds in all, processes, and what an hour of all machines costs."""

    seconds: float
    workers: int
    price_per_hour: float | None

    def price_of_a_million(self, pictures: int) -> str:
        """In words; empty where nobody said what an hour costs."""
        if self.price_per_hour is None:
            return ""
        return f"{self.price_per_hour / 3600 * self.seconds / pictures * 1e6:,.2f}"


class Summary(NamedTuple):
    """What the records of all parts tell together.

    Attributes:
        pictures: read by this command.
        seconds: of the workers of this command, by stage.
        labels: how often each was given, in the whole folder.
        examples: pictures of the whole folder as the model saw them.
    """

    pictures: int
    seconds: dict[str, float]
    labels: Counter[str]
    examples: list[dict[str, Any]]

    @classmethod
    def of(cls, records: Iterable[dict[str, Any]], parts: Sequence[Part], worked_on: Collection[str]) -> Summary:
        """Of the records of parts, some of which this command worked on, by name."""
        pictures, examples = 0, []
        seconds, labels = Counter[str](dict.fromkeys(STAGES, 0)), Counter[str]()
        for part, record in zip(parts, records, strict=True):
            labels.update(record["labels"])
            examples += record["examples"]
            if part.name in worked_on:
                pictures += record["work"]["pictures"]
                seconds.update(record["work"]["seconds"])
        return cls(pictures, dict(seconds), labels, examples)

    def told(self, run: Run) -> str:
        """This command's speed and price, in a line."""
        if not self.pictures:
            return "nothing new to tag"
        rate = self.pictures / run.seconds
        busy = sum(self.seconds.values()) or 1.0
        stages = ", ".join(f"{stage} {100 * self.seconds[stage] / busy:.0f} %" for stage in STAGES)
        if price := run.price_of_a_million(self.pictures):
            price = f"; {price} for a million at {run.price_per_hour:g} an hour"
        return f"{self.pictures:,} pictures in {run.seconds:,.0f} s, {rate:,.1f} a second ({stages}){price}"


def write_tagging_page(config: TagConfig, manifest: dict[str, Any], summary: Summary, run: Run) -> None:
    """Writes `tagging.html` into the folder; raises StorageError where that fails."""
    sections = [
        Section("overview", "What was found", _overview(manifest, summary, run), "Overview"),
        Section("labels", "Labels given", _labels(summary.labels), "Labels"),
        Section("pictures", "Pictures and their tags", _pictures(summary.examples), "Pictures"),
        Section("errors", "What could not be tagged", _errors(manifest), "Errors"),
        Section("facts", "How it was made", _facts(config, manifest), "Facts"),
    ]
    lead = f"<strong>{manifest['tagged']:,}</strong> of {counted(manifest['rows'], 'key')} have tags."
    storage.write_bytes(storage.join(config.out, NAME), whole_page("SigRL tags", lead, sections))


def _overview(manifest: dict[str, Any], summary: Summary, run: Run) -> str:
    given = summary.labels.total()
    figures = {
        "Keys": f"{manifest['rows']:,}",
        "Tagged": f"{manifest['tagged']:,}",
        "Tags": f"{given:,} <small>{given / max(manifest['tagged'], 1):.1f} a picture</small>",
        "This run": f"{summary.pictures:,} <small>pictures in {run.seconds:,.0f} s</small>",
        "Speed": f"{summary.pictures / run.seconds:,.1f} <small>pictures a second</small>",
    }
    if summary.pictures and (price := run.price_of_a_million(summary.pictures)):
        figures["Cost"] = f"{price} <small>a million, at {run.price_per_hour:g} an hour</small>"
    tiles = "".join(f"<div><dt>{term}</dt><dd>{value}</dd></div>" for term, value in figures.items())
    parts = [("tagged", manifest["tagged"]), *((REASONS[name], count) for name, count in manifest["errors"].items())]
    page = f'<dl class="figures">{tiles}</dl>{note("Every key is one of these:")}{shares(parts)}'
    if summary.pictures:
        milliseconds = [(f"ms: {stage}", round(1000 * summary.seconds[stage])) for stage in STAGES]
        page += note(
            f"Where the time of {counted(run.workers, 'worker')} went in this run; reading and decoding may go on "
            "while the model computes:"
        ) + shares(milliseconds)
    return page


def _labels(labels: Counter[str]) -> str:
    if not labels:
        return note("No picture has a tag.")
    most = labels.most_common()
    largest = most[0][1]
    bars = "".join(
        f'<li><span class="name" title="{escape(name)}">{escape(name)}</span><span class="track">'
        f'<span class="bar p0" style="left:0;width:{100 * count / largest:.2f}%"></span></span>'
        f'<span class="value">{count:,}</span></li>'
        for name, count in most[:MAX_BARS]
    )
    told = f"{counted(len(most), 'label')} given at least once"
    told += f"; the {MAX_BARS} most frequent:" if len(most) > MAX_BARS else ":"
    return f'{note(told)}<ul class="bars">{bars}</ul>'


def _pictures(examples: Sequence[dict[str, Any]]) -> str:
    if not examples:
        return note("None could be read.")
    step = -(-len(examples) // MAX_EXAMPLES)
    cards = "".join(_card(example, number) for number, example in enumerate(examples[::step], 1))
    return f'{note("A few, as the model saw them.")}<ul class="pictures">{cards}</ul>'


def _card(example: dict[str, Any], number: int) -> str:
    uri = escape(example["uri"])
    picture = thumbnail(base64.b64decode(example["jpeg"]), f'alt="Picture {number}, {uri}" title="{uri}"')
    tags = "".join(
        f'<li><span class="name">{escape(tag["label"])}</span> <small>{tag["score"]:.3g}</small></li>'
        for tag in example["tags"]
    )
    where = f'<p class="soft uri" title="{uri}"><span class="name">{uri}</span></p>'
    return f'<li>{picture}{where}<ul class="tags flow">{tags or "<li class=unknown>no tag</li>"}</ul></li>'


def _errors(manifest: dict[str, Any]) -> str:
    if not manifest["errors"]:
        return note("Every key has tags.")
    told = ((name, f"{count:,}: {REASONS[name]}") for name, count in manifest["errors"].items())
    return definitions(told) + note("The column <code>error</code> of tags/ says it for every key.")


def _facts(config: TagConfig, manifest: dict[str, Any]) -> str:
    named = ("images", "corpus", "model", "vocabulary", "top_k", "threshold", "precision", "format", "code_version")
    return definitions([("checkpoint", escape(config.checkpoint)), *((n, escape(str(manifest[n]))) for n in named)])
