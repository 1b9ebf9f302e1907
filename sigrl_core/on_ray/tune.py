"""Searches for the configuration with the best objective, by trials under Ray Tune; see `search.study`.

A trial is a training, in one process or with several workers of `on_ray.train`, in a folder like that of train.py.
Snapshots of Ray Tune are not used. A search is resumed from the records of its trials, from which the states of sampler
and scheduler are computed.
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
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
from ray import tune
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from sigrl_core.config import Resources, RunConfig, SearchConfig
from sigrl_core.config.deprecated import upgrade_plan
from sigrl_core.config.json import to_json
from sigrl_core.data.label_states import PRESENT
from sigrl_core.data.shards import ShardFolder
from sigrl_core.errors import ConfigError, ShardError, StorageError
from sigrl_core.io import storage
from sigrl_core.io.progress import Advance, progress_line
from sigrl_core.io.resumable_job import ResumableJob
from sigrl_core.model.backbone import load_backbone
from sigrl_core.model.checkpoint import publish_checkpoint
from sigrl_core.on_ray.tune_scheduler import Scheduler, restore_scheduler
from sigrl_core.on_ray.tune_trial import TrialSetup, max_trials, read_failure, run_trial
from sigrl_core.search.space import SearchSpace
from sigrl_core.search.study import Study, Trial, check_grace_period, choose_held_out_labels, load_warm_start
from sigrl_core.training.inputs import backbone_hash, check_data, pinned_inputs, resolve_files
from sigrl_core.training.run_log import read_metrics
from sigrl_core.training.state import MONITOR, Metrics
from sigrl_core.training.trainer import open_datasets


def search(
    config: SearchConfig,
    base: RunConfig,
    space: SearchSpace,
    data: str,
    out: str,
    *,
    validation: str | None = None,
    resources: Resources | None = None,
    concurrency: int | None = None,
    finish: Callable[[Study], None] = lambda study: None,
) -> Study:
    """Starts a search or resumes it; does nothing but write its results again if it is finished.

    Args:
        config: sampler, scheduler and objective.
        base: the configuration that trials change.
        space: the values of the fields that trials change.
        data: shard folder to train on, of images or of features.
        out: folder of the search, local or s3://.
        validation: shard folder that the objective is measured on; None uses the validation split of `data`. Test
            images must not be used here.
        resources: the workers of each trial; one by default.
        concurrency: number of trials that run at a time; None uses the whole cluster. With 1, a search with the same
            seed gives the same trials.
        finish: called with the study when all trials have ended.

    Raises:
        ConfigError: the search cannot run, or no trial has a result.
        ShardError: `data` or `validation` cannot be used.
        StorageError: `out` cannot be written, contains another search, or is used by another run.
    """
    resources = replace(resources or Resources(), num_workers=(resources and resources.num_workers) or 1)
    resources.refuse("tune", "min_workers")
    check_grace_period(config, base)
    data, out = storage.absolute(data), storage.absolute(out)
    validation = storage.absolute(validation) if validation else None
    folder = ShardFolder.open(data)
    base, hashes = resolve_files(base, folder.vocabulary)
    held_out = [] if config.objective == "map" else choose_held_out_labels(folder.vocabulary, config.held_out)
    added = _check(base, folder, validation, held_out, config.allow_enlarged)
    plan = {
        "kind": "search",
        **{name: value for name, value in asdict(config).items() if name not in ("trials", "allow_enlarged")},
        "warm_start": list(config.warm_start),
        "base": json.loads(to_json(base)),
        **hashes,
        "space": json.loads(to_json(space)),
        "data": data,
        "data_sha256": folder.manifest["sha256"],
        "validation": validation,
        "held_out_labels": held_out,
        **added,
    }
    warm_start = load_warm_start(config.warm_start, space, base, config.objective)
    job = ResumableJob(out, upgrade_plan=upgrade_plan("tune", added))
    with job.locked(plan):
        study = Study(job=job, config=config, base=base, space=space, warm_start=warm_start)
        study.load()
        pending = study.pending()
        concurrent = max_trials(resources, concurrency, len(pending)) if pending else 0
        job.start(plan)
        if pending:
            job.reopen(())  # a finished search may get more trials
            setup = TrialSetup(
                out=out,
                data=data,
                validation=validation,
                held_out=held_out,
                objective=config.objective,
                resources=resources,
                expected=pinned_inputs(plan, out),
            )
            _run(study, setup, concurrent)
        if (best := study.best) is None:
            reasons = "; ".join(sorted({trial.reason for trial in study.ended}))[:300]
            raise ConfigError(f"{out}: none of {len(study.ended)} trials came to a result: {reasons}")
        history = _history(study, best.number, best.epochs)
        publish_checkpoint(study.path(best.number, "checkpoint"), job.path("checkpoint"), history)
        finish(study)
        study.write_results()
    return study


def _check(
    base: RunConfig, folder: ShardFolder, validation: str | None, held_out: list[str], allow_enlarged: bool
) -> dict[str, str]:
    """Checks that trials can run on these data, and that the objective can be measured.

    Returns:
        The hashes of backbone and validation shards, for the plan.
    """
    _, rows = open_datasets(folder, validation)
    check_data(base, folder, rows.folder)
    backbone = load_backbone(base.backbone)
    for each in {each.uri: each for each in (folder, rows.folder)}.values():
        each.check_features(backbone.frozen_sha256, "--backbone")
        each.check_image_size(backbone.image_size, "--allow-enlarged", allow_enlarged)
    shown = np.zeros(len(folder.vocabulary), bool)
    for states_NC in rows.label_states():
        shown |= (states_NC == PRESENT).any(0)
    names = folder.vocabulary.subset("seen").names
    for kind, labels in (("held out", held_out), ("trained on", [name for name in names if name not in held_out])):
        if labels and not any(shown[folder.vocabulary.index[name]] for name in labels):
            raise ShardError(
                f"{rows.folder.uri}: none of its {len(rows)} validation images shows a label that is {kind}, so the "
                "objective cannot be measured; run preprocess.py with a larger --validation-fraction"
            )
    return backbone_hash(base, backbone) | ({"validation_sha256": rows.folder.manifest["sha256"]} if validation else {})


# ---- on the driver ----


def _run(study: Study, setup: TrialSetup, concurrent: int) -> None:
    """Runs the trials that have not ended, `concurrent` at a time."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the record of a failed trial has its error
    os.environ |= {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "RAY_AIR_NEW_OUTPUT": "0",  # the new output ignores `verbose`
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails before its first epoch has none
    }
    resources, pending = setup.resources, study.pending()
    has_workers = (resources.num_workers or 1) > 1
    trial_resources: dict[str, float] = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    if has_workers:
        trial_resources = {"CPU": 0.0, "memory": 1.0}  # its workers reserve CPUs and GPUs; Ray requires some resource
    scheduler = restore_scheduler(study)
    total = study.config.trials
    results = _Results()
    with (
        tempfile.TemporaryDirectory() as scratch,
        progress_line("tune", total, done=total - len(pending), unit="trials") as advance,
    ):
        proposals = _Proposals(study, scheduler, results, advance)
        tuner = tune.Tuner(
            tune.with_resources(partial(run_trial, setup), trial_resources),
            tune_config=tune.TuneConfig(
                num_samples=len(pending),
                max_concurrent_trials=concurrent,
                search_alg=proposals,
                scheduler=scheduler,
                reuse_actors=not has_workers,  # importing torch takes seconds
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=scratch,
                verbose=0,
                callbacks=[results],
                failure_config=tune.FailureConfig(max_failures=1),  # a lost process is replaced once
            ),
        )
        tuner.fit()
    if proposals.stopped_by:
        raise StorageError(proposals.stopped_by)
    for trial in study.ended:
        storage.remove(study.path(trial.number, "state"))


class _Results(tune.Callback):
    """The results of running trials, each since its latest start.

    The searcher does not suffice for this: Ray Tune does not pass it the result after which a trial is stopped.
    """

    def __init__(self) -> None:
        self.by_trial = defaultdict[str, list[dict[str, Any]]](list)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        if result["training_iteration"] == 1:  # the trial starts again after its process was lost
            self.by_trial[trial.trial_id].clear()
        if MONITOR in result:
            self.by_trial[trial.trial_id].append(result)


class _Proposals(Searcher):
    """The searcher: passes pending trials to Ray Tune, records ended ones, and keeps the best trial's checkpoint."""

    def __init__(self, study: Study, scheduler: TrialScheduler, results: _Results, advance: Advance) -> None:
        super().__init__(metric=MONITOR, mode="max")
        self.study, self.scheduler, self.results, self.advance = study, scheduler, results, advance
        self.pending = study.pending()
        self.running: dict[str, tuple[int, float]] = {}
        self.stopped_by = ""
        """Why the search stops before its last trial."""

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        while self.pending:
            trial = self.study.propose(self.pending.pop(0))
            if trial.state is None:
                self.running[trial_id] = trial.number, time.monotonic()
                return {"trial": trial.to_record()}
            self._show(trial)
        return Searcher.FINISHED  # type: ignore[return-value]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number, started = self.running.pop(trial_id)
        results = self.results.by_trial.pop(trial_id, [])
        epochs = [result[MONITOR] for result in results]
        failure = read_failure(self.study.path(number), error)
        if failure is not None and failure.stops_search:  # not recorded, so that the same command runs it again
            self.stopped_by, self.pending = failure.reason, []
            return
        reason = failure.reason if failure else ""
        stopped = isinstance(self.scheduler, Scheduler) and trial_id in self.scheduler.stopped
        state = "failed" if reason else "stopped" if stopped else "complete"
        checkpoint, workers_state = self.study.path(number, "checkpoint"), self.study.path(number, "state")
        best = max(results, key=lambda result: result[MONITOR], default={})
        # The checkpoint is published before the result is recorded, because a recorded trial is never run again.
        if not reason and CHECKPOINT_PATH_KEY in best:
            saved = storage.join(workers_state, best[CHECKPOINT_PATH_KEY].rpartition("/")[2], "checkpoint")
            publish_checkpoint(saved, checkpoint, _history(self.study, number, epochs))
        previous_best = self.study.best
        trial = self.study.finish(number, state, reason, epochs, time.monotonic() - started)
        if self.study.best is not trial:
            storage.remove(checkpoint)
        elif previous_best is not None:
            storage.remove(self.study.path(previous_best.number, "checkpoint"))
        with contextlib.suppress(StorageError):  # its workers may still be writing
            storage.remove(workers_state)
        self._show(trial)

    def _show(self, trial: Trial) -> None:
        best = self.study.best
        note = f"trial {trial.number} {trial.state}"
        note += f": {trial.reason[:80]}" if trial.reason else f" after {len(trial.epochs)} epochs"
        self.advance(1, note if best is None else f"{note}, best {best.objective:.4f} (trial {best.number})")

    def save(self, checkpoint_path: str) -> None:
        """Does nothing, because a search is resumed from the records of its trials."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing; Ray Tune calls it only for searches that it resumes itself."""


def _history(study: Study, number: int, epochs: Sequence[float]) -> list[Metrics]:
    """Returns the metrics of the epochs that were reported; stopped workers may have finished further epochs."""
    return read_metrics(study.path(number))[: len(epochs)]
