"""The page about a search: how good its trials were, when, with which values, and what mattered."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from dataclasses import asdict
from typing import Any

import optuna

from sigrl_core import storage
from sigrl_core.report.charts import Axis, Line, line_chart, line_legend, parallel_coordinates
from sigrl_core.report.markup import Section, counted, definitions, escape, note, scrollable, whole_page
from sigrl_core.search import Search, Trial
from sigrl_core.search_space import Between, Where

NAME = "search.html"
MAX_ROWS = 100
OBJECTIVES = {
    "gzsl.map": "mAP of all labels asked together, those held out among them",
    "zsl.map": "mAP of the labels held out, asked alone",
    "map": "mAP of the labels trained on",
}


def told(search: Search) -> str:
    """What came of it, in a line."""
    best, states = search.best, Counter(trial.state for trial in search.ended)
    assert best is not None
    epochs = sum(len(trial.epochs) for trial in search.ended)
    ended = ", ".join(f"{count} {state}" for state, count in sorted(states.items()) if state)
    return (
        f"{len(search.ended)} trials, {ended}, {epochs} epochs; best {search.config.objective} {best.objective:.4f} "
        f"(trial {best.number}, epoch {best.best_epoch})"
    )


def write_search_page(search: Search) -> None:
    """Writes `search.html` into the search's folder; raises StorageError where that fails."""
    best = search.best
    assert best is not None
    sections = [
        Section("overview", "What came of it", _overview(search, best), "Overview"),
        Section("course", "How it went", _course(search), "Course"),
        Section("values", "Which values did well", _values(search), "Values"),
        Section("importance", "What mattered", _importance(search), "Importance"),
        Section("trials", "Every trial", _trials(search), "Trials"),
        Section("facts", "How it was made", _facts(search), "Facts"),
    ]
    lead = (
        f"The best of {counted(len(search.ended), 'trial')} has an objective of <strong>{best.objective:.4f}</strong>."
    )
    storage.write_bytes(search.job.path(NAME), whole_page("SigRL search", lead, sections))


def _overview(search: Search, best: Trial) -> str:
    states = Counter(trial.state for trial in search.ended)
    figures = {
        "Objective": f"{best.objective:.4f} <small>trial {best.number}, epoch {best.best_epoch}</small>",
        "Trials": f"{len(search.ended)} <small>{states['stopped']} stopped early, {states['failed']} failed</small>",
        "Epochs": f"{sum(len(trial.epochs) for trial in search.ended):,}",
        "Time": f"{sum(trial.seconds for trial in search.ended) / 60:,.1f} <small>minutes of trials</small>",
    }
    tiles = "".join(f"<div><dt>{term}</dt><dd>{value}</dd></div>" for term, value in figures.items())
    chosen = definitions((name, escape(_written(value))) for name, value in best.parameters.items())
    objective = f"The objective is {OBJECTIVES[search.config.objective]}, on validation pictures."
    return f'<dl class="figures">{tiles}</dl>{note(objective)}<h3>The best trial\'s values</h3>{chosen}'


def _course(search: Search) -> str:
    """Objective over trials, and over the epochs of each."""
    scored = [trial for trial in search.ended if trial.objective is not None]
    highest, so_far = -math.inf, []
    for trial in scored:
        highest = max(highest, trial.objective or 0.0)
        so_far.append((float(trial.number), highest))
    each = Line("each trial", [(float(trial.number), trial.objective or 0.0) for trial in scored], "dots")
    by_trial = line_chart(
        "Objective by trial", [Line("best so far", so_far), each], x_title="trial", y_title="objective"
    )
    best = search.best
    curves = [
        Line(
            f"trial {trial.number}",
            [(float(epoch), value) for epoch, value in enumerate(trial.epochs, 1)],
            "" if trial is best else "faint",
        )
        for trial in sorted(scored, key=lambda trial: trial is not best)
    ]
    by_epoch = line_chart("Objective by epoch", curves, x_title="epoch", y_title="objective")
    rungs = ""
    if search.config.scheduler == "asha":
        left = Counter(len(trial.epochs) for trial in scored if trial.state == "stopped")
        gone = ", ".join(f"{count} after epoch {epoch}" for epoch, count in sorted(left.items()))
        rungs = note(f"Trials that others were better than were stopped early: {gone or 'none'}.")
    panels = (("By trial", "best so far", by_trial), ("By epoch", "best trial", by_epoch))
    figures = "".join(
        f"<figure><figcaption><h3>{heading}</h3>{line_legend([Line(name, [])])}</figcaption>{chart}</figure>"
        for heading, name, chart in panels
    )
    return f'<div class="panels">{figures}</div>{rungs}'


def _values(search: Search) -> str:
    scored = [trial for trial in search.ended if trial.objective is not None]
    used = {name for trial in scored for name in trial.parameters}
    searched = {name: where for name, where in search.space.searched(search.base).items() if name in used}
    if not searched:
        return note("Nothing was searched that any trial used.")
    objectives = sorted(trial.objective or 0.0 for trial in scored)
    low, high = objectives[0], objectives[-1]
    good = objectives[-max(1, len(objectives) // 5)]
    axes = [Axis(name, _marks(where)) for name, where in searched.items()]
    axes.append(Axis("objective", [(0.0, f"{low:.3f}"), (1.0, f"{high:.3f}")]))
    rows = []
    for trial in scored:
        heights: list[float | None] = [
            _height(where, trial.parameters[name]) if name in trial.parameters else None
            for name, where in searched.items()
        ]
        objective = trial.objective or 0.0
        heights.append((objective - low) / (high - low) if high > low else 0.5)
        rows.append((f"trial {trial.number}: {objective:.4f}", heights, objective >= good))
    return note("A line a trial; the best fifth stands out. A line breaks where a value is not used.") + (
        parallel_coordinates("Values and objective of every trial", axes, rows)
    )


def _marks(where: Where) -> list[tuple[float, str]]:
    if isinstance(where, Between):
        return [(0.0, f"{where.low:g}"), (1.0, f"{where.high:g}")]
    return [(_height(where, value), _written(value)) for value in where]


def _height(where: Where, value: Any) -> float:
    if not isinstance(where, Between):
        return where.index(value) / (len(where) - 1)
    low, high, here = (math.log(x) if where.log else x for x in (where.low, where.high, value))
    return (here - low) / (high - low)


def _importance(search: Search) -> str:
    """Share of what differs between trials that each value explains, as far as it was used in all of them."""
    done = [trial for trial in search.ended if trial.state == "complete"]
    common = set.intersection(*(set(trial.parameters) for trial in done)) if done else set()
    if len(done) < 4 or not common or len({trial.objective for trial in done}) < 2:
        return note("Too few trials ran to their end to say.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        found = optuna.importance.get_param_importances(
            search.study(), evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
        )
    bars = "".join(
        f'<li><span class="name" title="{escape(name)}">{escape(name)}</span><span class="track">'
        f'<span class="bar p0" style="left:0;width:{100 * share:.1f}%"></span></span>'
        f'<span class="value">{100 * share:.0f} %</span></li>'
        for name, share in found.items()
    )
    text = (
        f"Of the {counted(len(done), 'trial')} that ran to their end, how much of the difference each value explains "
        "(fANOVA, Hutter et al. 2014); values that not all of them use are left out."
    )
    return f'{note(text)}<ul class="bars">{bars}</ul>'


def _trials(search: Search) -> str:
    ordered = sorted(search.ended, key=lambda trial: (trial.objective is None, -(trial.objective or 0.0)))
    rows = "".join(
        f'<tr><th scope="row">{trial.number}</th><td>{"" if trial.objective is None else f"{trial.objective:.4f}"}</td>'
        f"<td>{trial.state}</td><td>{len(trial.epochs)}</td><td>{trial.seconds:.0f}</td><td>{_told_of(trial)}</td></tr>"
        for trial in ordered[:MAX_ROWS]
    )
    columns = ("Trial", "Objective", "", "Epochs", "Seconds", "Values")
    heads = "".join(f'<th scope="col">{head}</th>' for head in columns)
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    rest = f" The best {MAX_ROWS}; trials.parquet has all." if len(ordered) > MAX_ROWS else ""
    whole = f"<details><summary>Table</summary>{scrollable('Every trial', table)}</details>"
    return whole + note(rest) + _failed(search)


def _told_of(trial: Trial) -> str:
    values = ", ".join(f"{name} {_written(value)}" for name, value in trial.parameters.items())
    return escape(f"{trial.reason}; {values}" if trial.reason else values)


def _failed(search: Search) -> str:
    reasons = Counter(trial.reason for trial in search.ended if trial.state == "failed")
    if not reasons:
        return ""
    return "<h3>Why trials failed</h3>" + definitions(
        (counted(count, "trial"), escape(reason)) for reason, count in reasons.most_common()
    )


def _facts(search: Search) -> str:
    plan, config = search.job.plan(), asdict(search.config)
    how = ("objective", "sampler", "scheduler", "grace_epochs", "reduction", "seed")
    pairs = [(name, escape(str(config[name]))) for name in how]
    pairs += [(name, escape(str(plan[name]))) for name in ("data", "validation")]
    pairs.append(("held out", escape(", ".join(plan["held_out_labels"])) or "none"))
    return definitions(pairs)


def _written(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
