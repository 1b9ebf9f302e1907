"""Connects to an existing Ray cluster, or starts one on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import ray
import ray.util

from sigrl_core.config import Resources
from sigrl_core.on_ray import worker_plugins

_CHECKOUT = Path(__file__).resolve().parents[2]  # or the folder of installed packages


def connect(
    *,
    dashboard: bool = False,
    log_to_driver: bool = False,
    object_store_bytes: int = 500_000_000,
    num_cpus: int = 0,
    metrics_port: int | None = None,
) -> None:
    """Connects this process to Ray, unless it is connected, and sends its plug-ins to the workers. Needs no network.

    If `RAY_ADDRESS` is set, as inside `ray job submit`, the function connects to that cluster and does not change its
    settings. Otherwise it starts a private cluster, which ends with this process.

    Args:
        dashboard: the private cluster runs its dashboard, which the clean-up of a training inside a search needs.
        log_to_driver: shows the output of the workers.
        object_store_bytes: size of the private cluster's shared memory.
        num_cpus: minimum number of logical CPUs of the private cluster.
        metrics_port: port of the private cluster's Prometheus metrics; None exports none.
    """
    if not ray.is_initialized():
        _quieten()
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=log_to_driver, logging_level=logging.ERROR)
        else:
            _start(dashboard, log_to_driver, object_store_bytes, num_cpus, metrics_port)
    worker_plugins.publish()


def _start(
    dashboard: bool, log_to_driver: bool, object_store_bytes: int, num_cpus: int, metrics_port: int | None
) -> None:
    """Starts a private Ray on this machine."""
    # Workers must import the same code as this process, from any working folder, installed or not.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_CHECKOUT), os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if metrics_port is None:
        os.environ.setdefault("RAY_enable_metrics_collection", "0")
    else:  # overrides the environment, which an earlier private cluster of this process may have set
        os.environ.update(RAY_enable_metrics_collection="1")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a private cluster has one node
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray sets 15, with which other programs starve workers
    if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        # Ray requires a token by default. It would write one into the home folder, and other clusters would require it.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    with _fixed_address() if dashboard else contextlib.nullcontext():
        ray.init(
            address="local",  # a new cluster, even if another one runs on this machine
            # Logical CPUs. Every actor pool of a pipeline reserves some; with fewer than four, pools block each other.
            num_cpus=max(4, num_cpus, os.cpu_count() or 1),
            include_dashboard=dashboard,
            object_store_memory=object_store_bytes,
            log_to_driver=log_to_driver,
            logging_level=logging.ERROR,
            _metrics_export_port=metrics_port,
        )


@contextlib.contextmanager
def _fixed_address() -> Iterator[None]:
    """Makes a Ray that starts in the body pass its address to its workers.

    Ray Train's clean-up connects from a worker to the dashboard. Without an address it fails if several Rays run on
    this machine.
    """
    with socket.socket() as free_socket:
        free_socket.bind(("", 0))
        port = free_socket.getsockname()[1]
    variables = {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"{ray.util.get_node_ip_address()}:{port}"}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)


def num_cpus() -> int:
    """Returns the number of CPUs: those of the cluster, or of this machine if the cluster is private.

    A private cluster may have more logical CPUs than the machine has.
    """
    return int(ray.cluster_resources()["CPU"]) if os.environ.get("RAY_ADDRESS") else os.cpu_count() or 1


def max_workers(resources: Resources) -> int:
    """Returns the number of workers for which the cluster has CPUs and GPUs, at least one."""
    available = {"CPU": float(num_cpus()), "GPU": ray.cluster_resources().get("GPU", 0.0)}
    needed = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    return max(1, min(int(available[kind] / count + 1e-9) for kind, count in needed.items() if count))


def device_of(gpus: float) -> str:
    """Returns the device type of a process to which Ray assigned this number of GPUs.

    With `SIGRL_FAKE_GPUS=1` in the environment, GPUs exist in Ray's bookkeeping only (`ray start --num-gpus 1`), and
    models compute on the CPU. This tests scheduling without GPUs.
    """
    return "cuda" if gpus and not os.environ.get("SIGRL_FAKE_GPUS") else "cpu"


def _quieten() -> None:
    """Hides Ray's progress messages; its session folder contains them."""
    logging.getLogger("ray").setLevel(logging.ERROR)
