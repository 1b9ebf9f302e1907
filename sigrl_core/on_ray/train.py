"""Runs data-parallel training under Ray Train; `training.trainer` computes, `training.folder` lists the files written.

On SIGTERM, which a preemptible machine receives before it stops, the workers save a checkpoint and stop.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError
from ray.train import CheckpointConfig, FailureConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback

from sigrl_core.config import Resources, RunConfig, ScaleConfig
from sigrl_core.config.json import from_json, to_json
from sigrl_core.data.dataset import RankShard, num_steps
from sigrl_core.data.shards import ShardFolder
from sigrl_core.errors import ConfigError, NotFiniteError, PreemptedError, SigrlError
from sigrl_core.io import storage
from sigrl_core.io.checksums import Pinned
from sigrl_core.io.resumable_job import MANIFEST
from sigrl_core.io.retry import explain_errors, is_transient
from sigrl_core.model.backbone import load_backbone
from sigrl_core.model.checkpoint import publish_checkpoint
from sigrl_core.on_ray.progress import Progress, watched
from sigrl_core.on_ray.session import connect, device_of
from sigrl_core.training.distributed import all_gather_objects
from sigrl_core.training.folder import flatten, is_started, planned_backbone, write_manifest, write_plan
from sigrl_core.training.inputs import backbone_hash, check_data, pinned_inputs, resolve_files
from sigrl_core.training.mlflow import MlflowRun
from sigrl_core.training.optim import describe_parameter_groups
from sigrl_core.training.run_log import RunLog, read_metrics
from sigrl_core.training.state import MONITOR, Metrics, TrainingState
from sigrl_core.training.trainer import Example, Trainer, open_datasets

TRAIN_RESOURCES = Resources(num_workers=2)


def train(
    config: RunConfig,
    data: str,
    out: str,
    *,
    validation: str | None = None,
    resources: Resources = TRAIN_RESOURCES,
    scale: ScaleConfig | None = None,
    held_out: Sequence[str] = (),
    objective: str = "map",
    callbacks: Sequence[UserCallback] = (),
    expected: Mapping[str, Pinned] | None = None,
) -> str:
    """Starts a training or resumes it; does nothing if it is finished.

    Args:
        config: the experiment.
        data: shard folder to train on.
        out: folder of this run, local or s3://.
        validation: shard folder that selects the best epoch; None uses the validation split of `data`.
        resources: the data-parallel workers; one if `num_workers` is None.
        scale: how the training runs on them.
        held_out: labels that are treated as unseen, see `Trainer`.
        objective: the mAP that selects the best epoch, see `Trainer`.
        callbacks: callbacks of Ray Train, called after every epoch.
        expected: the hashes that the inputs must have, see `pinned_inputs`; None takes the inputs as they are now.

    Returns:
        Path of the checkpoint.

    Raises:
        ConfigError: the configuration cannot run, or `out` contains another run.
        ShardError: `data` or `validation` cannot be used.
        WeightsError: the backbone's weights are missing.
        PreemptedError: the process received SIGTERM; the training is saved.
    """
    scale, num_workers = scale or ScaleConfig(), resources.num_workers or 1
    device = device_of(resources.gpus_per_worker)
    _check_gpus(num_workers, resources.gpus_per_worker)
    data, out = storage.absolute(data), storage.absolute(out)
    validation = storage.absolute(validation) if validation else None
    folder = ShardFolder.open(data)
    config, hashes = resolve_files(config, folder.vocabulary)
    check_data(config, folder, validation_folder := ShardFolder.open(validation) if validation else folder)
    plan = {
        "kind": "training",
        "config": json.loads(to_json(config)),
        **hashes,
        "data": data,
        "data_sha256": folder.manifest["sha256"],
        "validation": validation,
        **({"validation_sha256": validation_folder.manifest["sha256"]} if validation else {}),
        **({"held_out": list(held_out), "objective": objective} if held_out else {}),
    }
    is_resumed = is_started(out, plan)
    result = storage.join(out, "checkpoint")
    if is_resumed and storage.exists(storage.join(result, MANIFEST)):
        write_manifest(out, result, plan)  # an earlier run was killed before this, or is of version 0.1.0
        return result
    backbone = load_backbone(config.backbone)  # before the workers start: reports errors early, downloads weights once
    for each in {each.uri: each for each in (folder, validation_folder)}.values():
        each.check_features(backbone.frozen_sha256, "--backbone")
        each.check_image_size(backbone.image_size, "--scale.allow-enlarged", scale.allow_enlarged)
    plan |= planned_backbone(out) if is_resumed else backbone_hash(config, backbone)
    if not is_resumed:
        write_plan(out, plan)
    mlflow_run = MlflowRun.start_or_resume(scale.mlflow, out, flatten(plan["config"])) if scale.mlflow else None
    connect()
    filesystem, path = storage.filesystem_for(out)
    with watched("train", _total_steps(config, folder, validation)) as progress:
        trainer = _Trainer(
            _train_worker,
            train_loop_config={
                "config": to_json(config),
                "data": data,
                "validation": validation,
                "held_out": held_out,
                "objective": objective,
                "expected": expected or pinned_inputs(plan, out),
                "out": out,
                "scale": scale,
                "device": device,
                "cpus_per_worker": resources.cpus_per_worker,
                "progress": progress,
                "mlflow_run": mlflow_run and mlflow_run.run_id,
            },
            torch_config=TorchConfig(backend="nccl" if device == "cuda" else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=(resources.min_workers, num_workers) if resources.min_workers else num_workers,
                use_gpu=resources.gpus_per_worker > 0,
                resources_per_worker=_resources_per_worker(resources),
                elastic_resize_monitor_interval_s=scale.resize_seconds,
            ),
            run_config=RayRunConfig(
                name="state",
                storage_path=path,
                storage_filesystem=filesystem,
                callbacks=list(callbacks),
                failure_config=FailureConfig(max_failures=scale.max_failures),
                checkpoint_config=CheckpointConfig(
                    num_to_keep=scale.keep, checkpoint_score_attribute=MONITOR, checkpoint_score_order="max"
                ),
            ),
        )
        try:
            with _stopping_on_sigterm(progress):
                fitted = trainer.fit()
        except TrainingFailedError as ray_error:
            if (error := progress.failure()) is not None:
                raise error from ray_error
            raise
        if (error := progress.failure()) is not None:
            raise error
    best = fitted.get_best_checkpoint(MONITOR, "max") if fitted.best_checkpoints else fitted.checkpoint
    assert best is not None
    with best.as_directory() as folder_of_best:
        history = read_metrics(out)
        publish_checkpoint(storage.join(folder_of_best, "checkpoint"), result, history)
    write_manifest(out, result, plan)
    if mlflow_run and (message := mlflow_run.finish(history)):
        print(message, file=sys.stderr)
    return result


def _check_gpus(num_workers: int, gpus_per_worker: float) -> None:
    if num_workers > 1 and 0 < gpus_per_worker < 1:
        raise ConfigError(
            f"gpus_per_worker is {gpus_per_worker:g} for {num_workers} training workers, and NCCL takes one worker a "
            "GPU; give --gpus-per-worker 1, or --num-workers 1"
        )


def _resources_per_worker(resources: Resources) -> dict[str, float]:
    needed = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    return {name: count for name, count in needed.items() if count}


@contextlib.contextmanager
def _stopping_on_sigterm(progress: Progress) -> Iterator[None]:
    """Makes the workers save and stop when this process receives SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs signal handlers in the main thread only
        return
    earlier = signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=progress.request_stop).start())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


class _Trainer(TorchTrainer):
    """Stops training on Ctrl-C and raises KeyboardInterrupt; starts no process for datasets of Ray Data.

    Ray's own handler ends the process with status 1 and without a message, and stays installed after the training.
    """

    _controller: Any = None
    _interrupted = False

    def _create_default_callbacks(self) -> list[Any]:
        """Leaves out the one that starts a process for datasets, two CPU seconds each time that workers start."""
        return [each for each in super()._create_default_callbacks() if not isinstance(each, DatasetsCallback)]

    def _register_sigint_handler(self, controller: Any) -> None:
        self._controller = controller
        signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, *_: Any) -> None:
        self._interrupted = True
        raise KeyboardInterrupt

    def fit(self) -> ray.train.Result:
        earlier = signal.getsignal(signal.SIGINT)
        try:
            result = super().fit()
        except KeyboardInterrupt:
            if self._controller is not None:
                with contextlib.suppress(RayError):  # it ends with the workers
                    ray.get(self._controller.abort.remote(), timeout=20)
            raise
        finally:
            if self._controller is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, earlier)
        if self._interrupted:  # Python drops an exception that is raised while a destructor runs
            raise KeyboardInterrupt
        return result


# ---- in every worker ----


def _train_worker(setup: dict[str, Any]) -> None:
    trainer, local_error = None, None
    try:
        trainer = _make_trainer(setup)
    except SigrlError as error:
        local_error = error
    # All workers stop if one cannot start.
    if errors := [error for error in all_gather_objects(local_error) if error is not None]:
        permanent = [error for error in errors if not is_transient(error)]
        setup["progress"].fail([*permanent, *errors][0])
        if permanent:
            return  # a restart would fail again
        raise errors[0]
    assert trainer is not None
    try:
        _train(trainer, setup)
    except (ConfigError, PreemptedError) as error:  # on every worker at the same step; a restart would fail again
        setup["progress"].fail(error)
        if isinstance(error, NotFiniteError) and ray.train.get_context().get_world_rank() == 0:
            values = {"step": error.step, "loss": str(error.loss), "gradient_norm": str(error.gradient_norm)}
            storage.write_json(storage.join(setup["out"], "not_finite.json"), {**values, "uris": error.uris})
    except SigrlError as error:
        setup["progress"].fail(error)
        raise


def _make_trainer(setup: dict[str, Any]) -> Trainer:
    """Returns this worker's trainer in the state of the latest checkpoint."""
    config = from_json(RunConfig, setup["config"], "train")
    context = ray.train.get_context()
    rank_shard = RankShard(rank=context.get_world_rank(), world_size=context.get_world_size())
    kind = setup["device"]
    device = ray.train.torch.get_device() if kind == "cuda" else torch.device(kind)
    if kind == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    decoders = int(setup["cpus_per_worker"]) - 1
    trainer = Trainer(
        config,
        setup["data"],
        setup["validation"],
        rank_shard,
        device,
        max(0, decoders),
        setup["held_out"],
        setup["objective"],
        setup["expected"],
    )
    if (earlier := ray.train.get_checkpoint()) is not None:
        with earlier.as_directory() as saved:
            trainer.resume(Path(saved))
    return trainer


def _train(trainer: Trainer, setup: dict[str, Any]) -> None:
    log = _Log(setup, trainer.state) if ray.train.get_context().get_world_rank() == 0 else None

    def report(metrics: Metrics | None, state: TrainingState) -> None:
        with tempfile.TemporaryDirectory() as local:
            checkpoint = None
            if log is not None:
                if metrics is not None:
                    log.log_epoch(metrics, trainer.make_examples())
                trainer.save(Path(local), {"selected": metrics or {}, "history": log.run.history})
                checkpoint = ray.train.Checkpoint.from_directory(local)
            reported = metrics or {MONITOR: -1.0}  # a checkpoint inside an epoch ranks below every epoch
            with explain_errors(setup["out"], "written"):  # Ray Train copies the checkpoint there
                ray.train.report(reported, checkpoint=checkpoint, checkpoint_dir_name=f"step_{state.step:08d}")

    if not trainer.fit(report, log.log_step if log else lambda step, metrics: None, setup["scale"]):
        raise PreemptedError(
            f"{setup['out']}: saved at step {trainer.state.step}; run the same command again to resume"
        )


def _total_steps(config: RunConfig, folder: ShardFolder, validation: str | None) -> int:
    rows, _ = open_datasets(folder, validation)
    steps = config.training.epochs * num_steps(len(rows), config.training.batch_size)
    return min(steps, config.training.max_steps or steps)


class _Log:
    """The output of the first worker: the run's log, MLflow, and the progress line."""

    def __init__(self, setup: dict[str, Any], state: TrainingState) -> None:
        self.progress, run = setup["progress"], setup["mlflow_run"]
        self.mlflow_run = MlflowRun(setup["scale"].mlflow, run) if run else None
        self.progress.begin(state.step, describe_parameter_groups(state.optimiser.param_groups))
        self.run = RunLog(setup["out"], state.step)

    def log_step(self, step: int, metrics: Metrics) -> bool:
        self.run.log_step(step, metrics)
        return self.progress.update(step, f"loss {metrics['loss']:.4f}")

    def log_epoch(self, metrics: Metrics, examples: Sequence[Example]) -> None:
        self.run.log_epoch(metrics, examples)
        if self.mlflow_run and (message := self.mlflow_run.log(self.run.history)):
            self.progress.add_line(message)
