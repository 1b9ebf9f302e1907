"""shards -> checkpoint, data parallel under Ray Train. An adapter: what trains is experiment.Experiment.

OUT/run.json            what this folder trains, and on what; the same command goes on, another one is refused
OUT/metrics.jsonl       one line an epoch
OUT/tensorboard/        the same as scalars, losses by step; a few pictures, each with where its best label fits
OUT/checkpoint/         the best epoch, for evaluate.py, tag.py and serve.py; written when training has ended
OUT/state/              Ray Train's own: what resuming needs
OUT/not_finite.json     the pictures of a step whose loss was no number, where training stopped for that

SIGTERM, the notice that a preemptible machine gives, has the workers save where they are and leave.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
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

from sigrl_core import storage
from sigrl_core.batches import Slice, num_steps
from sigrl_core.checkpoint import publish_checkpoint
from sigrl_core.config import RunConfig, ScaleConfig
from sigrl_core.config_json import from_json, to_json
from sigrl_core.errors import ConfigError, NotFiniteError, PreemptedError, ShardError, SigrlError
from sigrl_core.experiment import Example, Experiment, rows_of
from sigrl_core.label_edges import LabelEdges
from sigrl_core.label_embeddings import load_embeddings
from sigrl_core.losses import get_loss
from sigrl_core.model.backbone import load_backbone, located
from sigrl_core.on_ray.progress import Progress, watched
from sigrl_core.on_ray.session import connect, device_of
from sigrl_core.optim import what_trains
from sigrl_core.records import ShardFolder, sha256_of
from sigrl_core.run_log import RunLog, read_metrics
from sigrl_core.tracking import MlflowRun
from sigrl_core.training import SELECTION, Metrics, TrainingState, gather_rows
from sigrl_core.vocabulary import Vocabulary


def train(
    config: RunConfig,
    scale: ScaleConfig,
    data: str,
    validation: str | None,
    out: str,
    *,
    held_out: Sequence[str] = (),
    objective: str = "map",
    callbacks: Sequence[UserCallback] = (),
) -> str:
    """Trains, or goes on training, or finds it done.

    Args:
        config: the experiment.
        scale: how many workers, on what.
        data: shard folder to train on.
        validation: shard folder to select the best epoch on; None takes the seeded split that `data` keeps.
        out: folder of this run, local or s3://.
        held_out, objective: see Experiment.
        callbacks: of Ray Train's, told of every epoch.

    Returns:
        Where the checkpoint is.

    Raises:
        ConfigError: the configuration cannot run, or `out` holds another run.
        ShardError: `data` or `validation` cannot be used.
        WeightsError: the backbone's weights are not here.
    """
    data, out = storage.absolute(data), storage.absolute(out)
    validation = storage.absolute(validation) if validation else None
    folder = ShardFolder.open(data)
    config, hashes = with_files(config, folder.vocabulary)
    check(config, folder, validation_folder := ShardFolder.open(validation) if validation else folder)
    run = {
        "config": json.loads(to_json(config)),
        **hashes,
        "data": data,
        "data_sha256": folder.manifest["sha256"],
        "validation": validation,
        **({"held_out": list(held_out), "objective": objective} if held_out else {}),
    }
    begun = _begun(out, run)
    result = storage.join(out, "checkpoint")
    if begun and storage.exists(storage.join(result, "manifest.json")):
        return result
    backbone = load_backbone(config.backbone)  # what is missing or does not fit stops here, and a download happens once
    for each in {each.uri: each for each in (folder, validation_folder)}.values():
        each.check_features(backbone.frozen_sha256, "--backbone")
    if not begun:
        storage.make_folder(out)
        storage.write_json(storage.join(out, "run.json"), run)
    tracked = MlflowRun.begin(scale.mlflow, out, _flat(run["config"])) if scale.mlflow else None
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
                "out": out,
                "scale": scale,
                "progress": progress,
                "mlflow_run": tracked and tracked.run_id,
            },
            torch_config=TorchConfig(backend="nccl" if device_of(scale.gpus) == "cuda" else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=(scale.min_workers, scale.workers) if scale.min_workers else scale.workers,
                use_gpu=scale.gpus,
                resources_per_worker={"CPU": scale.cpus_per_worker},
                elastic_resize_monitor_interval_s=scale.resize_seconds,
            ),
            run_config=RayRunConfig(
                name="state",
                storage_path=path,
                storage_filesystem=filesystem,
                callbacks=list(callbacks),
                failure_config=FailureConfig(max_failures=scale.max_failures),
                checkpoint_config=CheckpointConfig(
                    num_to_keep=scale.keep, checkpoint_score_attribute=SELECTION, checkpoint_score_order="max"
                ),
            ),
        )
        try:
            with _leaving_on_sigterm(progress):
                fitted = trainer.fit()
        except TrainingFailedError as failed:
            if (error := progress.failure()) is not None:
                raise error from failed
            raise
        if (error := progress.failure()) is not None:
            raise error
    best = fitted.get_best_checkpoint(SELECTION, "max") if fitted.best_checkpoints else fitted.checkpoint
    assert best is not None
    with best.as_directory() as folder_of_best:
        history = read_metrics(out)
        publish_checkpoint(storage.join(folder_of_best, "checkpoint"), result, history)
    if tracked and (said := tracked.finish(history)):
        print(said, file=sys.stderr)
    return result


def with_files(config: RunConfig, vocabulary: Vocabulary) -> tuple[RunConfig, dict[str, str]]:
    """Where any worker finds the files that a configuration names, and the hashes of those that say something of
    labels; refuses what is none of them."""
    hashes: dict[str, str] = {}
    config = replace(config, backbone=located(config.backbone))
    if (uri := config.graph.edges) is not None:
        uri = storage.absolute(uri)
        edges = LabelEdges.load(uri, vocabulary)
        hashes["label_edges_sha256"] = sha256_of(edges.to_json().encode())
        config = replace(config, graph=replace(config.graph, edges=uri))
    if (uri := config.backbone.label_embeddings) is not None:
        uri = storage.absolute(uri)
        embeddings_CE = load_embeddings(uri, vocabulary)
        hashes["label_embeddings_sha256"] = sha256_of(embeddings_CE.tobytes())
        config = replace(config, backbone=replace(config.backbone, label_embeddings=uri))
    return config, hashes


def check(config: RunConfig, folder: ShardFolder, validation: ShardFolder) -> None:
    """Raises ConfigError or ShardError where these data cannot be trained on like this."""
    get_loss(config.loss.kind)
    if folder.kind == "features" and config.training.augment != "none":
        raise ConfigError(
            f"training.augment is {config.training.augment!r}, but {folder.uri} holds features, which cannot be "
            "augmented; add --training.augment none"
        )
    if not folder.vocabulary.positions("seen"):
        raise ShardError(f"{folder.uri}: its vocabulary has no seen labels; run preprocess.py with labels to train on")
    if validation.vocabulary.hash != folder.vocabulary.hash:
        raise ShardError(
            f"{validation.uri}: vocabulary {validation.vocabulary.hash[:8]}, "
            f"{folder.uri} has {folder.vocabulary.hash[:8]}; "
            f"run preprocess.py with --vocabulary {folder.uri}/vocabulary.json"
        )


def _begun(out: str, run: dict[str, Any]) -> bool:
    """Whether the folder holds this training, whole or in part; raises ConfigError where it holds something else."""
    where = storage.join(out, "run.json")
    if storage.exists(where):
        found = storage.read_json(where)
        if found == run:
            return True
        differing = sorted(_flat(found).items() ^ _flat(run).items())[0][0]
        raise ConfigError(
            f"{out}: holds a training with another {differing}; choose another --out or delete the folder"
        )
    if storage.exists(out) and storage.list_files(out):
        raise ConfigError(f"{out}: holds files of something else (no run.json); choose another --out")
    return False


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(value, dict):
        return {prefix: json.dumps(value)}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}.{key}".lstrip(".")).items()}


@contextlib.contextmanager
def _leaving_on_sigterm(progress: Progress) -> Iterator[None]:
    """SIGTERM to this process has the workers save and leave."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears signals
        return
    earlier = signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=progress.ask_to_leave).start())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


class _Trainer(TorchTrainer):
    """Stops training on Ctrl-C and lets KeyboardInterrupt through.

    Ray's own handler ends the process in silence, with status 1, and stays in place after the training.
    """

    _controller: Any = None
    _interrupted = False

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
        if self._interrupted:  # and Python dropped it, as it does inside a destructor: no next stage then
            raise KeyboardInterrupt
        return result


# ---- on every worker ----


def _train_worker(setup: dict[str, Any]) -> None:
    experiment, found = None, None
    try:
        experiment = _experiment(setup)
    except SigrlError as error:
        found = error
    if errors := [error for error in gather_rows(found) if error is not None]:  # all stop, where one cannot start
        lasting = [error for error in errors if not storage.is_transient(error)]
        setup["progress"].fail([*lasting, *errors][0])
        if lasting:
            return  # no restart helps
        raise errors[0]
    assert experiment is not None
    try:
        _train(experiment, setup)
    except (ConfigError, PreemptedError) as error:  # on every worker at the same step; no restart helps
        setup["progress"].fail(error)
        if isinstance(error, NotFiniteError) and ray.train.get_context().get_world_rank() == 0:
            found = {"step": error.step, "loss": str(error.loss), "gradient_norm": str(error.gradient_norm)}
            storage.write_json(storage.join(setup["out"], "not_finite.json"), {**found, "uris": error.uris})
    except SigrlError as error:
        setup["progress"].fail(error)
        raise


def _experiment(setup: dict[str, Any]) -> Experiment:
    """This worker's share, where the last checkpoint left it."""
    config = from_json(RunConfig, setup["config"], "train")
    context = ray.train.get_context()
    mine = Slice(rank=context.get_world_rank(), workers=context.get_world_size())
    kind = device_of(setup["scale"].gpus)
    device = ray.train.torch.get_device() if kind == "cuda" else torch.device(kind)
    if kind == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    decoders = int(setup["scale"].cpus_per_worker) - 1
    experiment = Experiment(
        config,
        setup["data"],
        setup["validation"],
        mine,
        device,
        max(0, decoders),
        setup["held_out"],
        setup["objective"],
    )
    if (earlier := ray.train.get_checkpoint()) is not None:
        with earlier.as_directory() as saved:
            experiment.resume(Path(saved))
    return experiment


def _train(experiment: Experiment, setup: dict[str, Any]) -> None:
    log = _Log(setup, experiment.state) if ray.train.get_context().get_world_rank() == 0 else None

    def report(metrics: Metrics | None, state: TrainingState) -> None:
        with tempfile.TemporaryDirectory() as local:
            checkpoint = None
            if log is not None:
                if metrics is not None:
                    log.epoch(metrics, experiment.examples())
                experiment.save(Path(local), {"selected": metrics or {}, "history": log.run.history})
                checkpoint = ray.train.Checkpoint.from_directory(local)
            told = metrics or {SELECTION: -1.0}  # inside an epoch: worse than any
            ray.train.report(told, checkpoint=checkpoint, checkpoint_dir_name=f"step_{state.step:08d}")

    if not experiment.fit(report, log.step if log else lambda step, metrics: None, setup["scale"]):
        raise PreemptedError(f"{setup['out']}: saved at step {experiment.state.step}; the same command goes on")


def _total_steps(config: RunConfig, folder: ShardFolder, validation: str | None) -> int:
    rows, _ = rows_of(folder, validation)
    steps = config.training.epochs * num_steps(len(rows), config.training.batch_size)
    return min(steps, config.training.max_steps or steps)


class _Log:
    """What the first worker writes for people: the run's log, MLflow, the progress line."""

    def __init__(self, setup: dict[str, Any], state: TrainingState) -> None:
        self.progress, run = setup["progress"], setup["mlflow_run"]
        self.tracked = MlflowRun(setup["scale"].mlflow, run) if run else None
        self.progress.begin(state.step, what_trains(state.optimiser.param_groups))
        self.run = RunLog(setup["out"], state.step)

    def step(self, step: int, metrics: Metrics) -> bool:
        self.run.step(step, metrics)
        return self.progress.reach(step, f"loss {metrics['loss']:.4f}")

    def epoch(self, metrics: Metrics, examples: Sequence[Example]) -> None:
        self.run.epoch(metrics, examples)
        if self.tracked and (said := self.tracked.log(self.run.history)):
            self.progress.say(said)
