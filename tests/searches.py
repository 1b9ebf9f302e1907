"""Studies with simulated trials."""

import math
from pathlib import Path

from sigrl_core.config import SearchConfig
from sigrl_core.config.presets import get_preset
from sigrl_core.io.resumable_job import ResumableJob
from sigrl_core.search.space import SearchSpace
from sigrl_core.search.study import Study, Trial

BASE, SPACE = get_preset("quickstart"), SearchSpace()


def open_study(out: Path, **config) -> Study:
    """Starts or resumes the study in a folder."""
    study = Study(job=ResumableJob(str(out)), config=SearchConfig(**config), base=BASE, space=SPACE)
    plan = {"objective": study.config.objective, "data": "shards", "validation": None, "held_out_labels": ["dog"]}
    study.job.start(plan)
    study.load()
    return study


def simulate(trial: Trial) -> list[float]:
    """Returns simulated objectives by epoch, which are highest at a learning rate of 1e-3 and with propagation."""
    best = 0.5 - 0.1 * abs(math.log10(trial.config.optim.lr) + 3) + 0.1 * trial.config.graph.propagation
    return [best * share for share in (0.5, 0.8, 1.0, 0.9)]


def run_trials(study: Study, until: int) -> None:
    """Runs the trials below a number. Of four trials, one fails and one is stopped after an epoch."""
    for number in study.pending():
        if number < until and study.propose(number).state is None:
            epochs = simulate(study.trials[number])
            if number % 4 == 3:
                study.finish(number, "failed", "loss is nan", (), 1.0)
            elif number % 4 == 2:
                study.finish(number, "stopped", "", epochs[:1], 1.0)
            else:
                study.finish(number, "complete", "", epochs, 2.0)
