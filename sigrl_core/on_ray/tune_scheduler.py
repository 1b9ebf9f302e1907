"""The scheduler of a search: ASHA, except that it never stops the trial of the base configuration."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from sigrl_core.search.study import Study
from sigrl_core.training.state import MONITOR


class Scheduler(ASHAScheduler):
    """Ray Tune's ASHA, with one trial that is never stopped early; records the trials that it stops.

    Args:
        epochs: number of epochs of a complete trial.
        protected: number of the trial that runs to its end; None protects none.
        options: options of `ASHAScheduler`.

    Attributes:
        stopped: ids of the trials that were stopped early.
    """

    def __init__(self, epochs: int, protected: int | None, **options: Any) -> None:
        super().__init__(metric=MONITOR, mode="max", max_t=epochs, **options)
        self.epochs, self.protected, self.stopped = epochs, protected, set[str]()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP and result["training_iteration"] < self.epochs:
            if trial.config["trial"]["number"] == self.protected:
                return TrialScheduler.CONTINUE
            self.stopped.add(trial.trial_id)
        return decision


def restore_scheduler(search: Study) -> TrialScheduler:
    """Returns the scheduler of a search in its state after the trials that have ended."""
    config, epochs = search.config, search.base.training.epochs
    if config.scheduler == "none":
        return FIFOScheduler()
    protected = 0 if search.starts_from_base else None
    scheduler = Scheduler(epochs, protected, grace_period=config.grace_period, reduction_factor=config.reduction_factor)
    for trial in search.ended:
        ray_trial: Any = SimpleNamespace(trial_id=f"trial {trial.number}", config={"trial": {"number": trial.number}})
        scheduler.on_trial_add(None, ray_trial)  # type: ignore[arg-type]
        for epoch, objective in enumerate(trial.epochs, 1):
            scheduler.on_trial_result(None, ray_trial, {"training_iteration": epoch, MONITOR: objective})
    return scheduler
