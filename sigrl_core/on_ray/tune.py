"""Shards -> the configuration that does best on them, by trials under Ray Tune. What a search is stands in search.py.

A trial is a training of experiment.Experiment: in a process of its own, or with several workers by on_ray.train, in a
folder like that of train.py. Ray Tune keeps nothing: what a search goes on from are the records of its trials, from
which sampler and scheduler are brought to where they were.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray
import torch
from ray import tune
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY, TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from sigrl_core import storage
from sigrl_core.checkpoint import publish_checkpoint
from sigrl_core.command_line import explain
from sigrl_core.config import RunConfig, ScaleConfig, SearchConfig
from sigrl_core.config_json import to_json
from sigrl_core.errors import ConfigError, ShardError, StorageError
from sigrl_core.experiment import Experiment, rows_of
from sigrl_core.model.backbone import load_backbone
from sigrl_core.on_ray.session import connect, device_of, num_cpus
from sigrl_core.on_ray.train import check, train, with_files
from sigrl_core.parts import Job
from sigrl_core.progress import Advance, progress_line
from sigrl_core.records import PRESENT, ShardFolder
from sigrl_core.run_log import RunLog, read_metrics
from sigrl_core.search import BEST, Search, Trial, earlier_trials, held_out_labels, trial_path
from sigrl_core.search_space import SearchSpace
from sigrl_core.training import SELECTION, Metrics, TrainingState


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where trials run; changes no result of one beyond summation order."""

    concurrency: int | None = None
    """Trials at a time; None for as many as there is room for. One at a time, a search is the same each time."""
    workers: int = 1
    """Data-parallel workers of a trial."""
    cpus_per_worker: float = 1.0
    """With two or more, all but one of them are processes that decode and augment pictures for the worker."""
    gpus_per_worker: float = 0.0
    """0.5 puts two one-worker trials on a GPU, 0 computes on CPU."""

    def room(self, trials: int) -> int:
        """Connects to Ray; returns how many trials run at a time.

        Raises:
            ConfigError: more is asked for than there is.
        """
        connect(dashboard=self.workers > 1)
        there = {"CPU": float(num_cpus()), "GPU": ray.cluster_resources().get("GPU", 0.0)}
        wanted = {"CPU": self.workers * self.cpus_per_worker, "GPU": self.workers * self.gpus_per_worker}
        least = self.concurrency or 1
        for kind, each in wanted.items():
            if least * each > there[kind] + 1e-9:
                raise ConfigError(
                    f"{least} trial(s) at a time of {self.workers} worker(s) with {each / self.workers:g} {kind}s each "
                    f"want {least * each:g} {kind}s, and there are {there[kind]:g}; give a smaller --concurrency "
                    "or --workers, or less to each"
                )
        most = min(int(there[kind] / each + 1e-9) for kind, each in wanted.items() if each)
        return min(self.concurrency or most, trials)


@dataclass(frozen=True, kw_only=True)
class _Setup:
    """What every trial of a search has in common."""

    out: str
    data: str
    validation: str | None
    held_out: list[str]
    objective: str
    places: Places


def search(
    config: SearchConfig,
    base: RunConfig,
    space: SearchSpace,
    places: Places,
    data: str,
    validation: str | None,
    out: str,
    finish: Callable[[Search], None] = lambda search: None,
) -> Search:
    """Searches, or goes on searching, or finds it done.

    Args:
        config: how.
        base: the run that every trial changes.
        space: what it changes.
        places: where.
        data: shard folder to train on, of pictures or of features.
        validation: shard folder whose pictures the objective is measured on; None takes the seeded split that `data`
            keeps. Never the test pictures.
        out: folder of the search, local or s3://.
        finish: is given the search when all trials have ended.

    Raises:
        ConfigError: the search cannot run, or `out` holds another one.
        ShardError: `data` or `validation` cannot be used.
        StorageError: `out` cannot be written, or another run is at work there.
    """
    data, out = storage.absolute(data), storage.absolute(out)
    validation = storage.absolute(validation) if validation else None
    folder = ShardFolder.open(data)
    base, hashes = with_files(base, folder.vocabulary)
    held_out = [] if config.objective == "map" else held_out_labels(folder.vocabulary, config.held_out)
    _check(base, folder, validation, held_out)
    plan = {
        "kind": "search",
        **{name: value for name, value in asdict(config).items() if name != "trials"},
        "warm_start": list(config.warm_start),
        "base": json.loads(to_json(base)),
        **hashes,
        "space": json.loads(to_json(space)),
        "data": data,
        "data_sha256": folder.manifest["sha256"],
        "validation": validation,
        "held_out_labels": held_out,
    }
    earlier = earlier_trials(config.warm_start, space, base, config.objective)
    job = Job(out, BEST)
    with job.claimed(plan):
        found = Search(job=job, config=config, base=base, space=space, earlier=earlier)
        found.load()
        undone = found.undone()
        room = places.room(len(undone)) if undone else 0
        job.start(plan)
        if undone:
            setup = _Setup(
                out=out,
                data=data,
                validation=validation,
                held_out=held_out,
                objective=config.objective,
                places=places,
            )
            _run(found, setup, room)
        if (best := found.best) is None:
            reasons = "; ".join(sorted({trial.reason for trial in found.ended}))[:300]
            raise ConfigError(f"{out}: none of {len(found.ended)} trials came to a result: {reasons}")
        history = _history(found, best.number, best.epochs)
        publish_checkpoint(found.path(best.number, "checkpoint"), job.path("checkpoint"), history)
        finish(found)
        found.write_results()
    return found


def _check(base: RunConfig, folder: ShardFolder, validation: str | None, held_out: list[str]) -> None:
    """Refuses what no trial could run on."""
    _, rows = rows_of(folder, validation)
    check(base, folder, rows.folder)
    folder.check_features(load_backbone(base.backbone).frozen_sha256, "--backbone")
    shown = np.zeros(len(folder.vocabulary), bool)
    for states_NC in rows.label_states():
        shown |= (states_NC == PRESENT).any(0)
    names = folder.vocabulary.subset("seen").names
    for kind, labels in (("held out", held_out), ("trained on", [name for name in names if name not in held_out])):
        if labels and not any(shown[folder.vocabulary.index[name]] for name in labels):
            raise ShardError(
                f"{rows.folder.uri}: none of its {len(rows)} validation pictures shows a label that is {kind}, so the "
                "objective cannot be measured; run preprocess.py with a larger --validation-fraction"
            )


# ---- on the driver ----


def _run(search: Search, setup: _Setup, room: int) -> None:
    """Runs the trials that have not ended, so many at a time."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # why a trial failed stands in its record
    os.environ |= {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "RAY_AIR_NEW_OUTPUT": "0",  # which prints whatever `verbose` says
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails before its first epoch has none
    }
    places, undone = setup.places, search.undone()
    resources: dict[str, float] = {"CPU": places.cpus_per_worker, "GPU": places.gpus_per_worker}
    if places.workers > 1:
        resources = {"CPU": 0.0, "memory": 1.0}  # its workers hold what it computes with, and Ray wants something
    scheduler = _scheduler(search)
    total = search.config.trials
    results = _Results()
    with (
        tempfile.TemporaryDirectory() as scratch,
        progress_line("tune", total, done=total - len(undone), unit="trials") as advance,
    ):
        tuner = tune.Tuner(
            tune.with_resources(partial(_trial, setup), resources),
            tune_config=tune.TuneConfig(
                num_samples=len(undone),
                max_concurrent_trials=room,
                search_alg=_Proposals(search, scheduler, results, advance),
                scheduler=scheduler,
                reuse_actors=places.workers == 1,  # importing torch takes seconds
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=scratch,
                verbose=0,
                callbacks=[results],
                failure_config=tune.FailureConfig(max_failures=1),  # of its process; what it says itself is final
            ),
        )
        tuner.fit()
    for trial in search.ended:
        storage.remove(search.path(trial.number, "state"))


class _Scheduler(ASHAScheduler):
    """Ray Tune's, which remembers what it stopped for others, and does not stop what the search starts from.

    Args:
        epochs: of a whole trial.
        kept: number of the trial that runs to its end.
    """

    def __init__(self, epochs: int, kept: int | None, **options: Any) -> None:
        super().__init__(metric=SELECTION, mode="max", max_t=epochs, **options)
        self.epochs, self.kept, self.stopped = epochs, kept, set[str]()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP and result["training_iteration"] < self.epochs:
            if trial.config["trial"]["number"] == self.kept:
                return TrialScheduler.CONTINUE
            self.stopped.add(trial.trial_id)
        return decision


def _scheduler(search: Search) -> TrialScheduler:
    """As far as it was after the trials that have ended."""
    config, epochs = search.config, search.base.training.epochs
    if config.scheduler == "none":
        return FIFOScheduler()
    kept = 0 if search.starts_from_base else None
    scheduler = _Scheduler(epochs, kept, grace_period=config.grace_epochs, reduction_factor=config.reduction)
    for trial in search.ended:
        told: Any = SimpleNamespace(trial_id=f"trial {trial.number}", config={"trial": {"number": trial.number}})
        scheduler.on_trial_add(None, told)  # type: ignore[arg-type]
        for epoch, objective in enumerate(trial.epochs, 1):
            scheduler.on_trial_result(None, told, {"training_iteration": epoch, SELECTION: objective})
    return scheduler


class _Results(tune.Callback):
    """What trials told so far, each since it last started.

    A searcher is not given the result that a trial is stopped for.
    """

    def __init__(self) -> None:
        self.of_trial = defaultdict[str, list[dict[str, Any]]](list)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        if result["training_iteration"] == 1:  # again, where its process or machine was lost
            self.of_trial[trial.trial_id].clear()
        if SELECTION in result:
            self.of_trial[trial.trial_id].append(result)


class _Proposals(Searcher):
    """Gives Ray Tune the trials that have not ended, records those that have, and keeps the best one's checkpoint."""

    def __init__(self, search: Search, scheduler: TrialScheduler, results: _Results, advance: Advance) -> None:
        super().__init__(metric=SELECTION, mode="max")
        self.search, self.scheduler, self.results, self.advance = search, scheduler, results, advance
        self.waiting = search.undone()
        self.running: dict[str, tuple[int, float]] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        while self.waiting:
            trial = self.search.proposed(self.waiting.pop(0))
            if trial.state is None:
                self.running[trial_id] = trial.number, time.monotonic()
                return {"trial": trial.to_record()}
            self._show(trial)
        return Searcher.FINISHED  # type: ignore[return-value]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number, started = self.running.pop(trial_id)
        results = self.results.of_trial.pop(trial_id, [])
        epochs = [result[SELECTION] for result in results]
        reason = _why_it_failed(self.search.path(number), error)
        stopped = isinstance(self.scheduler, _Scheduler) and trial_id in self.scheduler.stopped
        state = "failed" if reason else "stopped" if stopped else "complete"
        checkpoint, by_workers = self.search.path(number, "checkpoint"), self.search.path(number, "state")
        best = max(results, key=lambda result: result[SELECTION], default={})
        if not reason and CHECKPOINT_PATH_KEY in best:  # before the trial has ended: then, it is not run again
            saved = storage.join(by_workers, best[CHECKPOINT_PATH_KEY].rpartition("/")[2], "checkpoint")
            publish_checkpoint(saved, checkpoint, _history(self.search, number, epochs))
        before = self.search.best
        trial = self.search.end(number, state, reason, epochs, time.monotonic() - started)
        if self.search.best is not trial:
            storage.remove(checkpoint)
        elif before is not None:
            storage.remove(self.search.path(before.number, "checkpoint"))
        with contextlib.suppress(StorageError):  # its workers may still be writing
            storage.remove(by_workers)
        self._show(trial)

    def _show(self, trial: Trial) -> None:
        best = self.search.best
        note = f"trial {trial.number} {trial.state}"
        note += f": {trial.reason[:80]}" if trial.reason else f" after {len(trial.epochs)} epochs"
        self.advance(1, note if best is None else f"{note}, best {best.objective:.4f} (trial {best.number})")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the records of trials are all there is to go on from."""

    def restore(self, checkpoint_path: str) -> None:
        """Never asked for."""


def _history(search: Search, number: int, epochs: Sequence[float]) -> list[Metrics]:
    """Metrics of the epochs that the search has heard of; workers may have gone on when they were stopped."""
    return read_metrics(search.path(number))[: len(epochs)]


_FAILED = ".failed.json"
"""What a trial's folder is called, and this, is where the trial says why."""


def _why_it_failed(where: str, is_lost: bool) -> str:
    """Empty where it did not; `is_lost`: its process ended without a word, twice."""
    told = where + _FAILED
    if storage.exists(told):
        return storage.read_json(told)["reason"]
    return "its process ended twice without a word: killed, or out of memory" if is_lost else ""


# ---- in a trial ----


def _trial(setup: _Setup, proposed: dict[str, Any]) -> None:
    """Trains one configuration and says after each epoch how good it is.

    What goes wrong is written down and not raised: Ray Tune would try it again, as it does where a process is lost.
    """
    trial = Trial.from_record(proposed["trial"], "tune")
    out = trial_path(setup.out, trial.number)
    storage.remove(out + _FAILED)
    storage.remove(out)  # of a process that was killed: it starts again
    try:
        if setup.places.workers > 1:
            _train_by_workers(setup, trial, out)
        else:
            _train_here(setup, trial, out)
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        reason = explain(error) or f"{type(error).__name__}: {first_line}"
        storage.write_json(out + _FAILED, {"reason": reason})


def _train_here(setup: _Setup, trial: Trial, out: str) -> None:
    places = setup.places
    torch.set_num_threads(max(1, int(places.cpus_per_worker)))
    experiment = Experiment(
        trial.config,
        setup.data,
        setup.validation,
        device=device_of(places.gpus_per_worker),
        decoders=max(0, int(places.cpus_per_worker) - 1),
        held_out=setup.held_out,
        objective=setup.objective,
    )
    log = RunLog(out, 0)

    def report(metrics: Metrics | None, state: TrainingState) -> None:
        assert metrics is not None
        log.epoch(metrics)
        if state.best[1] == state.epoch:
            with tempfile.TemporaryDirectory() as local:
                experiment.save_checkpoint(Path(local), {"selected": metrics})
                publish_checkpoint(f"{local}/checkpoint", storage.join(out, "checkpoint"), log.history)
        tune.report({SELECTION: metrics[SELECTION]})

    experiment.fit(report, lambda step, metrics: log.step(step, metrics))


def _train_by_workers(setup: _Setup, trial: Trial, out: str) -> None:
    places = setup.places
    scale = ScaleConfig(
        workers=places.workers,
        gpus=places.gpus_per_worker > 0,
        cpus_per_worker=places.cpus_per_worker,
        keep=trial.config.training.epochs,  # it may be epochs ahead of what the search has heard of
    )
    train(
        trial.config,
        scale,
        setup.data,
        setup.validation,
        out,
        held_out=setup.held_out,
        objective=setup.objective,
        callbacks=[TuneReportCallback()],
    )
