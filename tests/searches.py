"""Searches whose trials are made up, for tests of what follows from trials."""

import math
from pathlib import Path

from sigrl_core.config import SearchConfig
from sigrl_core.parts import Job
from sigrl_core.presets import get_preset
from sigrl_core.search import BEST, Search, Trial
from sigrl_core.search_space import SearchSpace

BASE, SPACE = get_preset("quickstart"), SearchSpace()


def opened(out: Path, **config) -> Search:
    """A search of this folder, begun or gone on with."""
    search = Search(job=Job(str(out), BEST), config=SearchConfig(**config), base=BASE, space=SPACE)
    named = {"objective": search.config.objective, "data": "shards", "validation": None, "held_out_labels": ["dog"]}
    search.job.start(named)
    search.load()
    return search


def run(trial: Trial) -> list[float]:
    """Objectives by epoch of a made-up trial: best at a rate of 1e-3, with propagation."""
    best = 0.5 - 0.1 * abs(math.log10(trial.config.optim.lr) + 3) + 0.1 * trial.config.graph.propagation
    return [best * share for share in (0.5, 0.8, 1.0, 0.9)]


def go_on(search: Search, until: int) -> None:
    """Trials up to a number: of four, one fails and one is stopped after an epoch."""
    for number in search.undone():
        if number < until and search.proposed(number).state is None:
            epochs = run(search.trials[number])
            if number % 4 == 3:
                search.end(number, "failed", "loss is nan", (), 1.0)
            elif number % 4 == 2:
                search.end(number, "stopped", "", epochs[:1], 1.0)
            else:
                search.end(number, "complete", "", epochs, 2.0)
