"""Where a command runs: workers, CPUs, GPUs. Nothing here changes a result beyond the order of floating-point sums."""

from __future__ import annotations

from dataclasses import dataclass

from sigrl_core.config.checks import require
from sigrl_core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class _PerWorker:
    """What one process gets."""

    cpus_per_worker: float = 1.0
    """CPUs of each worker. In training and search, all CPUs but one are processes that decode images."""
    gpus_per_worker: float = 0.0
    """GPUs of each worker, 0 to 1; 0.5 puts two workers on one GPU, 0 computes on CPU."""

    def __post_init__(self) -> None:
        require(self.cpus_per_worker > 0, "cpus_per_worker", self.cpus_per_worker, "above 0")
        require(0 <= self.gpus_per_worker <= 1, "gpus_per_worker", self.gpus_per_worker, "0 to 1")


@dataclass(frozen=True, kw_only=True)
class Resources(_PerWorker):
    """The workers of a command. A command refuses the fields that it cannot use."""

    num_workers: int | None = None
    """Number of worker processes. None: as many as the cluster has room for (preprocess, cache_features), or no worker
    but the command's own process (evaluate)."""
    min_workers: int | None = None
    """Number of workers to start with, or to continue with when machines leave; others join later, up to
    `num_workers`. None waits for all of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_workers is None or self.num_workers >= 1, "num_workers", self.num_workers, "1 or more")
        require(
            self.min_workers is None or 1 <= self.min_workers <= (self.num_workers or 0),
            "min_workers",
            self.min_workers,
            f"1 to num_workers = {self.num_workers}, or None",
        )

    def refuse(self, command: str, *names: str) -> None:
        """Raises ConfigError when one of these fields is set, for a command that cannot use it."""
        for name in names:
            if (value := getattr(self, name)) != getattr(Resources, name):
                raise ConfigError(f"{name} is {value!r}, which {command} cannot use; leave it out")


@dataclass(frozen=True, kw_only=True)
class Replicas(_PerWorker):
    """The replicas of a server."""

    min_replicas: int = 1
    """Smallest number of replicas."""
    max_replicas: int = 1
    """Largest number of replicas; Ray Serve adds and removes replicas as the number of waiting requests changes."""
    drain_seconds: float = 30.0
    """Time that a replica gets to finish its requests before it is stopped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            1 <= self.min_replicas <= self.max_replicas,
            "min_replicas",
            self.min_replicas,
            f"1 to max_replicas = {self.max_replicas}",
        )


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """How a training runs on its workers; changes no result beyond summation order."""

    resize_seconds: float = 60.0
    """Seconds between two looks for more workers, with `min_workers`."""
    save_every: int | None = None
    """Steps between two checkpoints inside an epoch; None saves after each epoch only."""
    keep: int = 1
    """Number of best epochs whose states are kept, besides the latest."""
    max_failures: int = 20
    """Number of times that lost workers are replaced before the run stops; run the same command again to resume."""
    micro_batches: int = 1
    """Number of parts in which each worker computes its share of a batch, one after the other, for batches that do not
    fit into memory (gradient caching). The step is the same for every loss; a second forward pass is its price."""
    compile: bool = False
    """Compiles the trained part (torch.compile): minutes before the first step, shorter steps."""
    allow_enlarged: bool = False
    """Accepts shards whose short side is below the model's `image_size`; their images are enlarged."""
    mlflow: str | None = None
    """Address of an MLflow server, http://..., that gets the metrics of each epoch; needs sigrl-on-ray[mlflow]."""

    def __post_init__(self) -> None:
        require(self.resize_seconds > 0, "scale.resize_seconds", self.resize_seconds, "above 0")
        require(self.save_every is None or self.save_every >= 1, "scale.save_every", self.save_every, "1 or more")
        require(self.keep >= 1, "scale.keep", self.keep, "1 or more")
        require(self.micro_batches >= 1, "scale.micro_batches", self.micro_batches, "1 or more")
        require(self.max_failures >= 0, "scale.max_failures", self.max_failures, "0 or more")
