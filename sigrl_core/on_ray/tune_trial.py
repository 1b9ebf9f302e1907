"""One trial of a search, which runs in a process of Ray Tune."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from sigrl_core.config import Resources, ScaleConfig
from sigrl_core.errors import ConfigError, PreemptedError, SigrlError, causes_of, explain
from sigrl_core.io import storage
from sigrl_core.io.checksums import Pinned
from sigrl_core.model.checkpoint import publish_checkpoint
from sigrl_core.on_ray.session import connect, device_of, num_cpus
from sigrl_core.on_ray.train import train
from sigrl_core.search.study import Trial, trial_path
from sigrl_core.training.run_log import RunLog
from sigrl_core.training.state import MONITOR, Metrics, TrainingState
from sigrl_core.training.trainer import Trainer


def max_trials(resources: Resources, concurrency: int | None, trials: int) -> int:
    """Connects to Ray; returns the number of trials that run at a time.

    Args:
        resources: the workers of each trial.
        concurrency: the requested number; None uses the whole cluster.
        trials: number of trials that are left.

    Raises:
        ConfigError: the cluster has too few CPUs or GPUs.
    """
    num_workers = resources.num_workers or 1
    connect(dashboard=num_workers > 1)
    available = {"CPU": float(num_cpus()), "GPU": ray.cluster_resources().get("GPU", 0.0)}
    per_worker = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    at_once = concurrency or 1
    for kind, count in per_worker.items():
        if (needed := at_once * num_workers * count) > available[kind] + 1e-9:
            raise ConfigError(
                f"{at_once} trial(s) at a time of {num_workers} worker(s) with {count:g} {kind}s each need {needed:g} "
                f"{kind}s, and there are {available[kind]:g}; give a smaller --concurrency or --num-workers, or less "
                "to each worker"
            )
    room = min(int(available[kind] / (num_workers * count) + 1e-9) for kind, count in per_worker.items() if count)
    return min(concurrency or room, trials)


@dataclass(frozen=True, kw_only=True)
class TrialSetup:
    """The settings that all trials of a search share."""

    out: str
    data: str
    validation: str | None
    held_out: list[str]
    objective: str
    resources: Resources
    expected: Mapping[str, Pinned]
    """The hashes that the inputs must have, see `training.inputs.pinned_inputs`."""


FAILED = ".failed.json"
"""Suffix of the file in which a trial records why it failed; the file is beside the trial's folder."""


def run_trial(setup: TrialSetup, proposed: dict[str, Any]) -> None:
    """Trains one configuration and reports its objective after each epoch.

    An error is written to a file and not raised, because Ray Tune would run the trial again, as after a lost process.

    Args:
        setup: the settings of all trials.
        proposed: `trial`, the record of the trial to run.
    """
    trial = Trial.from_record(proposed["trial"], "tune")
    out = trial_path(setup.out, trial.number)
    storage.remove(out + FAILED)
    storage.remove(out)  # a process that was killed leaves files; the trial starts again
    try:
        if (setup.resources.num_workers or 1) > 1:
            _train_on_workers(setup, trial, out)
        else:
            _train_in_process(setup, trial, out)
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        reason = explain(error) or f"{type(error).__name__}: {first_line}"
        storage.write_json(out + FAILED, {"reason": reason, "stops_search": _stops_search(error)})


def _stops_search(error: BaseException) -> bool:
    """Returns whether the cause is an input that was replaced, a disk or a store, and thus not the configuration."""
    causes = [cause for cause in causes_of(error) if isinstance(cause, SigrlError)]
    return bool(causes) and not isinstance(causes[0], ConfigError | PreemptedError)


def _train_in_process(setup: TrialSetup, trial: Trial, out: str) -> None:
    resources = setup.resources
    torch.set_num_threads(max(1, int(resources.cpus_per_worker)))
    trainer = Trainer(
        trial.config,
        setup.data,
        setup.validation,
        device=device_of(resources.gpus_per_worker),
        decoders=max(0, int(resources.cpus_per_worker) - 1),
        held_out=setup.held_out,
        objective=setup.objective,
        expected=setup.expected,
    )
    log = RunLog(out, 0)

    def report(metrics: Metrics | None, state: TrainingState) -> None:
        assert metrics is not None
        log.log_epoch(metrics)
        if state.best[1] == state.epoch:
            with tempfile.TemporaryDirectory() as local:
                trainer.save_checkpoint(Path(local), {"selected": metrics})
                publish_checkpoint(f"{local}/checkpoint", storage.join(out, "checkpoint"), log.history)
        tune.report({MONITOR: metrics[MONITOR]})

    trainer.fit(report, lambda step, metrics: log.log_step(step, metrics))


def _train_on_workers(setup: TrialSetup, trial: Trial, out: str) -> None:
    train(
        trial.config,
        setup.data,
        out,
        validation=setup.validation,
        resources=setup.resources,
        scale=ScaleConfig(keep=trial.config.training.epochs),  # keeps all: workers may be epochs ahead of the search
        held_out=setup.held_out,
        objective=setup.objective,
        callbacks=[TuneReportCallback()],
        expected=setup.expected,
    )


class Failure(NamedTuple):
    """Why a trial failed, and whether the search stops: the same trial may succeed when its cause is removed."""

    reason: str
    stops_search: bool = False


def read_failure(folder: str, is_lost: bool) -> Failure | None:
    """Returns why a trial failed; None if it did not.

    Args:
        folder: the trial's folder.
        is_lost: its process ended twice without an error message.
    """
    where = folder + FAILED
    if storage.exists(where):
        return Failure(**storage.read_json(where))
    return Failure("its process ended twice without a word: killed, or out of memory") if is_lost else None
