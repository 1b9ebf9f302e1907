"""The labels of a shard folder: how often each occurs, which never do, and which occur together."""

from __future__ import annotations

import numpy as np

from sigrl_core.report.charts import MAX_LETTERS, heat_table
from sigrl_core.report.contents import Contents
from sigrl_core.report.markup import counted, escape, legend, marked, note, scrollable, shortened
from sigrl_core.vocabulary import Label, Vocabulary

MAX_BARS = 80
MAX_NAMED = 200
"""Labels without a picture that are named."""
MAX_ROWS = 1000
"""Rows of the table with all counts."""
FEW = 10
"""Pictures below which a label is said to have few."""


def label_section(contents: Contents, vocabulary: Vocabulary) -> str:
    """What is known of labels, bars of the most frequent, those that never occur, and all counts as a table."""
    if not len(vocabulary):
        return note("The corpus has no labels, and no vocabulary was given.")
    present_C = contents.present_C
    occurring = [int(c) for c in contents.order_C if present_C[c]]
    shown = occurring[:MAX_BARS]
    told = _told(contents)
    if not shown:
        return note(told) + _never(contents, vocabulary) + _table(contents, vocabulary)
    which = f"The {len(shown)} most frequent of {counted(len(occurring), 'label')} that occur"
    rest = f"; {len(occurring) - len(shown):,} more that occur are in the table below" if occurring[MAX_BARS:] else ""
    signs = [('<span class="swatch p0"></span>', "training")]
    if contents.held_out:
        signs.append(('<span class="swatch p1"></span>', "held out"))
    if vocabulary.positions("unseen"):
        signs.append(('<span class="diamond">◆</span>', "unseen label"))
    bars = "".join(_bar(contents, vocabulary.labels[c], c) for c in shown)
    return (
        note(told)
        + note(
            f"{which if rest else 'Labels that occur, most frequent first'}{rest}. Pictures in which each is present:"
        )
        + legend(signs)
        + f'<ol class="bars">{bars}</ol>'
        + _never(contents, vocabulary)
        + _table(contents, vocabulary)
    )


def together_section(contents: Contents, vocabulary: Vocabulary) -> str:
    """Of the pictures with one label, the share that has another."""
    K = len(contents.together_KK)
    if K < 2:
        return note("Fewer than two labels occur, so none occur together.")
    names = [vocabulary.labels[c].name for c in contents.order_C[:K]]
    alone_K = contents.together_KK.diagonal()
    share_KK = contents.together_KK / alone_K[:, None]
    np.fill_diagonal(share_KK, np.nan)
    more = "" if (contents.present_C > 0).sum() == K else f" The {K} most frequent labels."
    unknown = " A label that is unknown counts as not there." if contents.unknown_C.any() else ""
    heads = [(name, f'<span class="soft">{int(count):,}</span>') for name, count in zip(names, alone_K, strict=True)]
    told = [
        f"of {counted(int(count), 'picture')} with {shortened(name, MAX_LETTERS)}, with"
        for name, count in zip(names, alone_K, strict=True)
    ]
    return note(
        f"Of the pictures with the label of a row, the percentage that also has the label of a column; "
        f"empty where none has.{more}{unknown}"
        f"{_closest(share_KK, alone_K, names)}"
    ) + heat_table("How often labels occur together, in percent", heads, share_KK, told)


def _closest(share_KK: np.ndarray, alone_K: np.ndarray, names: list[str]) -> str:
    """The three largest shares of labels that do not have few pictures, in a sentence."""
    names = [escape(shortened(name, MAX_LETTERS)) for name in names]
    ranked = np.where((alone_K >= FEW)[:, None] & (share_KK > 0), share_KK, -1.0)
    largest = [np.unravel_index(place, ranked.shape) for place in np.argsort(-ranked, axis=None, kind="stable")[:3]]
    found = [
        f'<span class="name">{names[i]}</span> with <span class="name">{names[j]}</span> '
        f"({100 * ranked[i, j]:.0f}&nbsp;%)"
        for i, j in largest
        if ranked[i, j] > 0
    ]
    return f" Closest: {', '.join(found)}." if found else ""


def _told(contents: Contents) -> str:
    states = {"present": contents.present_C, "absent": contents.absent_C, "unknown": contents.unknown_C}
    totals = {key: int(counts_C.sum()) for key, counts_C in states.items()}
    whole = sum(totals.values())
    parts = [f"{100 * number / whole:.1f} % {key}" if number else f"none {key}" for key, number in totals.items()]
    each = contents.labels_each
    pictures = max(1, int(each.sum()))
    return (
        f"Of {whole:,} label states (pictures × labels) {parts[0]}, {parts[1]}, {parts[2]}. "
        f"A picture has {totals['present'] / pictures:.1f} labels present on average, {len(each) - 1} at most."
    )


def _bar(contents: Contents, label: Label, c: int) -> str:
    largest = contents.present_C.max() / 100
    trained, held_out = int(contents.trained_C[c]), int(contents.present_C[c] - contents.trained_C[c])
    told = f"{held_out:,} of them held out; {contents.absent_C[c]:,} absent, {contents.unknown_C[c]:,} unknown"
    bars = "".join(
        f'<span class="bar p{i}" style="left:{left / largest:.2f}%;width:{width / largest:.2f}%"></span>'
        for i, (left, width) in enumerate([(0, trained), (trained, held_out)])
        if width
    )
    name, present = escape(label.name), f"{contents.present_C[c]:,}"
    return (
        f'<li><span class="name" title="{name}">{marked(label.name, label.split)}</span>'
        f'<span class="track" title="{name}: {present} present, {told}">{bars}</span>'
        f'<span class="value">{present}<span class="hidden"> present, {told}</span></span></li>'
    )


def _never(contents: Contents, vocabulary: Vocabulary) -> str:
    """The labels without a picture at all, and the seen ones without one that training sees."""
    never = np.flatnonzero(contents.present_C == 0)
    held_only = np.flatnonzero((contents.present_C > 0) & (contents.trained_C == 0))
    held_only = [c for c in held_only if vocabulary.labels[c].split == "seen"]
    groups = {
        "Never present": (never, "No picture has them, so nothing can be measured of them, nor learned from here."),
        "Held out alone": (held_only, "Seen labels that only held-out pictures have, so training never meets them."),
    }
    written = ""
    for title, (positions, meaning) in groups.items():
        if len(positions):
            labels = [vocabulary.labels[c] for c in positions[:MAX_NAMED]]
            chips = "".join(f'<li class="name">{marked(label.name, label.split)}</li>' for label in labels)
            more = (
                f'<li class="soft">and {len(positions) - MAX_NAMED:,} more</li>' if len(positions) > MAX_NAMED else ""
            )
            written += (
                f'<div class="group"><h3>{title}: {counted(len(positions), "label")}</h3>'
                f'{note(meaning)}<ul class="chips">{chips}{more}</ul></div>'
            )
    return written


def _table(contents: Contents, vocabulary: Vocabulary) -> str:
    counts = np.stack([contents.present_C, contents.trained_C, contents.absent_C, contents.unknown_C], axis=1)
    rows = "".join(
        f'<tr><th scope="row"><span class="name">{marked(label.name, label.split)}</span></th>'
        f"{''.join(f'<td>{number:,}</td>' for number in counts[c].tolist())}</tr>"
        for c in contents.order_C[:MAX_ROWS]
        for label in [vocabulary.labels[c]]
    )
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("Present", "in training", "Absent", "Unknown"))
    all_of_them = len(vocabulary) <= MAX_ROWS
    which = "All labels" if all_of_them else f"The {MAX_ROWS:,} most frequent labels; manifest.json has all"
    table = (
        f'<table class="counts"><thead><tr><th scope="col">Label</th>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    )
    return f"<details><summary>{which}, as a table</summary>{scrollable('All counts', table)}</details>"
