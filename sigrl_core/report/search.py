"""The page about a search, search.html: its best trial, its course, the values of good trials and their importance."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import optuna
from markupsafe import Markup

from sigrl_core.io import storage
from sigrl_core.report.charts import Line, Panel, line_chart, parallel_coordinates
from sigrl_core.report.page import counted, render
from sigrl_core.search.space import Domain, Interval, contains, contains_all
from sigrl_core.search.study import Study, Trial

NAME = "search.html"
MAX_ROWS = 100
MIN_TRIALS = 4
"""Complete trials that the importance of values needs."""
OBJECTIVES = {
    "gzsl.map": "mAP of all labels scored together, held-out labels included",
    "zsl.map": "mAP of the held-out labels, scored alone",
    "map": "mAP of the labels trained on",
}


def describe(study: Study) -> str:
    """Returns the outcome of a search in one line."""
    best, states = study.best, Counter(trial.state for trial in study.ended)
    assert best is not None
    epochs = sum(len(trial.epochs) for trial in study.ended)
    ended = ", ".join(f"{count} {state}" for state, count in sorted(states.items()) if state)
    return (
        f"{len(study.ended)} trials, {ended}, {epochs} epochs; best {study.config.objective} {best.objective:.4f} "
        f"(trial {best.number}, epoch {best.best_epoch})"
    )


def write_search_page(study: Study) -> None:
    """Writes `search.html` into the search's folder; raises StorageError if that fails."""
    best, trials, plan = study.best, study.ended, study.job.plan()
    assert best is not None
    scored = [trial for trial in trials if trial.objective is not None]
    complete = [trial for trial in trials if trial.state == "complete"]
    by_objective = sorted(trials, key=lambda trial: (trial.objective is None, -(trial.objective or 0.0)))
    reasons = Counter(trial.reason for trial in trials if trial.state == "failed")
    settings = {k: v for k, v in asdict(study.config).items() if k not in ("trials", "held_out", "warm_start")}
    page = render(
        "search.html.j2",
        best=best,
        num_trials=len(trials),
        tiles=_tiles(trials, best),
        objective=OBJECTIVES[study.config.objective],
        best_values=[(name, _format(value)) for name, value in best.parameters.items()],
        course=[_by_trial(scored), _by_epoch(scored, best)],
        stopped=_stopped(scored) if study.config.scheduler == "asha" else None,
        values=_values(study, scored),
        num_complete=len(complete),
        importance=_importance(study, complete),
        trials=[(trial, _values_text(trial)) for trial in by_objective[:MAX_ROWS]],
        failures=[(counted(count, "trial"), reason) for reason, count in reasons.most_common()],
        facts=[
            *settings.items(),
            *((name, plan[name]) for name in ("data", "validation")),
            ("held out", ", ".join(plan["held_out_labels"]) or "none"),
        ],
    )
    storage.write_bytes(study.job.path(NAME), page)


def _tiles(trials: Sequence[Trial], best: Trial) -> list[tuple[str, str, str]]:
    states = Counter(trial.state for trial in trials)
    return [
        ("Objective", f"{best.objective:.4f}", f"trial {best.number}, epoch {best.best_epoch}"),
        ("Trials", f"{len(trials)}", f"{states['stopped']} stopped early, {states['failed']} failed"),
        ("Epochs", f"{sum(len(trial.epochs) for trial in trials):,}", ""),
        ("Time", f"{sum(trial.seconds for trial in trials) / 60:,.1f}", "minutes of trials"),
    ]


def _by_trial(scored: Sequence[Trial]) -> Panel:
    points = [(float(trial.number), trial.objective or 0.0) for trial in scored]
    best = [(number, max(objective for _, objective in points[: i + 1])) for i, (number, _) in enumerate(points)]
    lines = [Line("best so far", best), Line("each trial", points, "dots")]
    chart = line_chart("Objective by trial", lines, x_title="trial", y_title="objective")
    return Panel("By trial", chart, ["best so far"])


def _by_epoch(scored: Sequence[Trial], best: Trial) -> Panel:
    lines = [
        Line(
            f"trial {trial.number}",
            [(float(epoch), value) for epoch, value in enumerate(trial.epochs, 1)],
            "" if trial is best else "faint",
        )
        for trial in sorted(scored, key=lambda trial: trial is not best)
    ]
    chart = line_chart("Objective by epoch", lines, x_title="epoch", y_title="objective")
    return Panel("By epoch", chart, ["best trial"])


def _stopped(scored: Sequence[Trial]) -> str:
    epochs = Counter(len(trial.epochs) for trial in scored if trial.state == "stopped")
    return ", ".join(f"{count} after epoch {epoch}" for epoch, count in sorted(epochs.items()))


def _values(study: Study, scored: Sequence[Trial]) -> Markup | None:
    """Draws the values and the objective of all scored trials; None if no trial used a value that was searched."""
    used = {name for trial in scored for name in trial.parameters}
    domains = {name: domain for name, domain in study.space.domains(study.base).items() if name in used}
    if not domains:
        return None
    objectives = sorted(trial.objective or 0.0 for trial in scored)
    low, high = objectives[0], objectives[-1]
    good = objectives[-max(1, len(objectives) // 5)]
    axes = [(name, _marks(domain)) for name, domain in domains.items()]
    axes.append(("objective", [(0.0, f"{low:.3f}"), (1.0, f"{high:.3f}")]))
    rows = []
    for trial in scored:
        objective = trial.objective or 0.0
        inside = {name: v for name, v in trial.parameters.items() if name in domains and contains(domains[name], v)}
        heights = [_height(domain, inside[name]) if name in inside else None for name, domain in domains.items()]
        heights.append((objective - low) / (high - low) if high > low else 0.5)
        rows.append((f"trial {trial.number}: {objective:.4f}", heights, objective >= good))
    return parallel_coordinates("Values and objective of every trial", axes, rows)


def _marks(domain: Domain) -> list[tuple[float, str]]:
    if isinstance(domain, Interval):
        return [(0.0, f"{domain.low:g}"), (1.0, f"{domain.high:g}")]
    return [(_height(domain, value), _format(value)) for value in domain]


def _height(domain: Domain, value: Any) -> float:
    """Returns the place of a value on its axis, 0 to 1."""
    if not isinstance(domain, Interval):
        return domain.index(value) / (len(domain) - 1)
    low, high, place = (math.log(x) if domain.log else x for x in (domain.low, domain.high, value))
    return (place - low) / (high - low)


def _importance(study: Study, complete: Sequence[Trial]) -> list[tuple[str, float, str]]:
    """Returns the share of the differences between trials that each value explains, for values that all trials use.

    A first trial with values outside the space is left out, as in `Study.optuna_study`.
    """
    domains = study.space.domains(study.base)
    complete = [trial for trial in complete if contains_all(domains, trial.parameters)]
    common = set.intersection(*(set(trial.parameters) for trial in complete)) if complete else set()
    if len(complete) < MIN_TRIALS or not common or len({trial.objective for trial in complete}) < 2:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        shares = optuna.importance.get_param_importances(
            study.optuna_study(), evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
        )
    return [(name, 100 * share, f"{100 * share:.0f} %") for name, share in shares.items()]


def _values_text(trial: Trial) -> str:
    values = ", ".join(f"{name} {_format(value)}" for name, value in trial.parameters.items())
    return f"{trial.reason}; {values}" if trial.reason else values


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
