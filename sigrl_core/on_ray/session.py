"""Joins the Ray cluster there is, or starts one on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import ray
import ray.data
import ray.util

_CHECKOUT = Path(__file__).resolve().parents[2]  # or the folder of installed packages


def connect(
    *,
    dashboard: bool = False,
    log_to_driver: bool = False,
    object_store_bytes: int = 500_000_000,
    num_cpus: int = 0,
    metrics_port: int | None = None,
) -> None:
    """Connects this process to Ray; does nothing when it already is. Needs no network.

    With `RAY_ADDRESS` set, as inside `ray job submit`, joins that cluster and leaves its settings alone. Else starts a
    private one that ends with this process.

    Args:
        dashboard: the private cluster serves its dashboard; training inside a search needs that for its clean-up.
        log_to_driver: shows what workers print.
        object_store_bytes: size of the private cluster's shared memory.
        num_cpus: that the private cluster counts at least, if more than it would by itself.
        metrics_port: where the private cluster tells Prometheus what it counts; None does not count.
    """
    if ray.is_initialized():
        return
    _quieten()
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=log_to_driver, logging_level=logging.ERROR)
        return
    # Workers import this very code, whatever folder the command was called from and whether it is installed or not.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_CHECKOUT), os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if metrics_port is None:
        os.environ.setdefault("RAY_enable_metrics_collection", "0")
    else:  # asked for: also where the environment, perhaps a private cluster before this one, says otherwise
        os.environ.update(RAY_enable_metrics_collection="1")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # of nodes that are told to leave: there is one
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves beside anything else on the machine
    if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        # Ray asks for a token by default, and would write one into the home folder that other clusters then ask for.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    with _address_told() if dashboard else contextlib.nullcontext():
        ray.init(
            address="local",  # not the cluster that may run on this machine for something else
            # Logical: every actor pool of a pipeline holds its share, and with fewer than four, pools wait for each
            # other.
            num_cpus=max(4, num_cpus, os.cpu_count() or 1),
            include_dashboard=dashboard,
            object_store_memory=object_store_bytes,
            log_to_driver=log_to_driver,
            logging_level=logging.ERROR,
            _metrics_export_port=metrics_port,
        )


@contextlib.contextmanager
def _address_told() -> Iterator[None]:
    """Has a Ray that starts meanwhile tell its workers where it is.

    Ray Train's clean-up asks the dashboard from a worker, and would look for the only Ray on this machine.
    """
    with socket.socket() as one:
        one.bind(("", 0))
        port = one.getsockname()[1]
    told = {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"{ray.util.get_node_ip_address()}:{port}"}
    os.environ.update(told)
    try:
        yield
    finally:
        for name in told:
            os.environ.pop(name, None)


def num_cpus() -> int:
    """CPUs of the cluster, or those of this machine where the cluster is our own and counts more than there are."""
    return int(ray.cluster_resources()["CPU"]) if os.environ.get("RAY_ADDRESS") else os.cpu_count() or 1


def device_of(gpus: float) -> str:
    """What a process computes on that Ray gave so many GPUs.

    Where the environment says `SIGRL_FAKE_GPUS=1`, machines only say that they have some (`ray start --num-gpus 1`):
    where things run is rehearsed, and models compute on the CPU.
    """
    return "cuda" if gpus and not os.environ.get("SIGRL_FAKE_GPUS") else "cpu"


def _quieten() -> None:
    """Keeps Ray's own progress and second copies of errors off the terminal; its session folder has them all."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)
