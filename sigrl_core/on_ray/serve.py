"""Runs the HTTP interface of `sigrl_core.serving` on Ray Serve.

Each replica is one process: it holds the models, decodes images in threads, and tags the images of all pending requests
in one batch, so no image is copied between processes. While the model computes, the next batch collects; a request that
arrives at an idle replica is not delayed.
"""

# Without postponed annotations: Serve reads the type of `build`'s argument.
import asyncio
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import ray
import torch
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, model_validator
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.util import metrics

from sigrl_core import plugins
from sigrl_core.config import Replicas, ServeConfig
from sigrl_core.config.deprecated import FIELDS, rename_keys
from sigrl_core.errors import ConfigError, SigrlError
from sigrl_core.model.checkpoint import checkpoint_version
from sigrl_core.on_ray import worker_plugins
from sigrl_core.on_ray.haproxy import haproxy_ingress
from sigrl_core.on_ray.session import connect, device_of
from sigrl_core.serving.app import create_app
from sigrl_core.serving.keys import ApiKeys
from sigrl_core.serving.messages import TagResult
from sigrl_core.serving.middleware import PROXY_CALLBACK, raw_no_replica_response
from sigrl_core.serving.rates import RateLimiter, TokenBuckets
from sigrl_core.serving.service import Service, TagQuery

logger = logging.getLogger("ray.serve")

_OLD_NAMES = {
    f"{section}.{old}": f"{section}.{new}"
    for section, kind in (("config", "ServeConfig"), ("replicas", "Replicas"))
    for old, new in FIELDS[kind].items()
}


class Arguments(BaseModel):
    """`args` of the application in a Serve file."""

    model_config = ConfigDict(extra="forbid")

    config: ServeConfig
    replicas: Replicas = Replicas()
    plugins: list[str] = []  # modules, as --plugin

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, arguments: Any) -> Any:
        """Accepts the field names of version 0.1.0, with a line on stderr for each."""
        for old, new in _OLD_NAMES.items():
            section, _, name = old.partition(".")
            values = arguments.get(section) if isinstance(arguments, dict) else None
            if isinstance(values, dict) and name in values:
                print(f"Serve file: {old} is deprecated; use {new}", file=sys.stderr)
        return rename_keys(arguments, _OLD_NAMES)


def build(arguments: Arguments) -> serve.Application:
    """Builds the application that `serve deploy` starts; see cluster/serve.yaml.

    Raises:
        ConfigError: there are no keys, and anonymous clients are not explicitly allowed.
    """
    config, replicas = arguments.config, arguments.replicas
    plugins.load(arguments.plugins)
    if config.api_keys is None and not config.allow_anonymous:
        raise ConfigError(
            "api_keys: not set, so anyone who reaches the server could use it; set it to a key file (serve.py "
            "--new-key NAME creates one), or set allow_anonymous"
        )
    deployment = Server.options(
        max_ongoing_requests=2 * config.batch_size + 16,  # two batches, and requests that tag nothing
        max_queued_requests=config.max_queued,
        autoscaling_config={
            "min_replicas": replicas.min_replicas,
            "max_replicas": replicas.max_replicas,
            "target_ongoing_requests": 4,
            "upscale_delay_s": 5,
            "downscale_delay_s": 120,
        },
        ray_actor_options={"num_cpus": replicas.cpus_per_worker, "num_gpus": replicas.gpus_per_worker},
        graceful_shutdown_timeout_s=replicas.drain_seconds,
        user_config={"checkpoint": config.checkpoint, "models": dict(config.models)},
    )
    return deployment.bind(config, replicas, RateLimits.bind(), worker_plugins.dump())


@serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000)
class RateLimits:
    """Holds the token buckets of all clients, for all replicas."""

    def __init__(self) -> None:
        self.buckets = TokenBuckets()

    async def take_tokens(self, client: str, per_minute: float, requested: int) -> tuple[int, float]:
        return self.buckets.take(client, per_minute, requested)


@serve.deployment(
    backpressure_config={"status_code": 503, "retry_after_s": 1}, health_check_period_s=5, health_check_timeout_s=60
)
@serve.ingress()
class Server:
    """One replica of the server."""

    def __init__(
        self,
        config: ServeConfig,
        replicas: Replicas,
        rate_limits: DeploymentHandle,
        plugins_payload: bytes | None = None,
    ) -> None:
        worker_plugins.install(plugins_payload)
        self.num_threads = max(1, int(replicas.cpus_per_worker))
        torch.set_num_threads(self.num_threads)
        self.service = Service(config, device_of(replicas.gpus_per_worker))
        self.keys = ApiKeys.load(config.api_keys) if config.api_keys else None
        self.rate_limits = rate_limits
        tag_batch: Any = self._tag_batch
        tag_batch.set_max_batch_size(max(config.batch_size, config.max_images))  # Serve does not split a request
        self.model_thread = ThreadPoolExecutor(1, "model")
        self.metrics = _Metrics()
        threading.Thread(target=self._reload_periodically, daemon=True).start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        async def take_tokens(client: str, per_minute: float, requested: int) -> tuple[int, float]:
            try:
                return await self.rate_limits.take_tokens.remote(client, per_minute, requested)
            except (RayError, RayServeException) as error:  # its actor is being restarted, or the server is stopping
                logger.warning("rate limits are not enforced: %s", type(error).__name__)
                return requested, 0.0

        async def create_slot(name: str) -> _ModelSlot:
            return _ModelSlot(self.service, name)

        max_models = self.service.config.max_loaded_models
        acquire_model: Any = serve.multiplexed(max_num_models_per_replica=max_models)(create_slot)
        run_query: Any = self._tag_batch  # Serve's decorator turns calls with one query into calls with a list
        return create_app(
            self.service,
            run_query,
            lambda: self.keys,
            RateLimiter(take_tokens),
            on_request=self.metrics.record_request,
            num_threads=self.num_threads,
            acquire_model=acquire_model,
        )

    async def reconfigure(self, changes: dict[str, Any]) -> None:
        """Changes the checkpoints without interrupting requests; Serve calls it with `user_config`."""
        await asyncio.to_thread(self.service.refresh, replace(self.service.config, **changes), strict=True)

    def check_health(self) -> None:
        """Does nothing: Serve's health check fails if the replica does not answer the call."""

    @serve.batch(
        max_batch_size=32,
        batch_wait_timeout_s=0,
        max_concurrent_batches=1,
        batch_size_fn=lambda queries: sum(len(query.images) for query in queries),
    )
    async def _tag_batch(self, queries: list[TagQuery]) -> list[list[TagResult]]:
        self.metrics.record_batch(sum(len(query.images) for query in queries))
        return await asyncio.get_running_loop().run_in_executor(self.model_thread, self.service.tag, queries)

    def _reload_periodically(self) -> None:
        """Loads new versions of the checkpoints and of the key file."""
        while True:
            time.sleep(self.service.config.reload_interval_s)
            try:
                if changed := self.service.refresh():
                    logger.info("loaded new checkpoints of %s", ", ".join(changed))
                if uri := self.service.config.api_keys:
                    self.keys = ApiKeys.load(uri)
            except (SigrlError, OSError) as error:
                logger.warning("reload failed; the current checkpoints and keys stay in use: %s", error)


class _ModelSlot:
    """A model's place in a replica, for `serve.multiplexed`.

    Serve records which replicas have a slot of a model and routes requests with its name to them. It calls `__del__` on
    the least recently used slot to make room for another model.
    """

    def __init__(self, service: Service, name: str) -> None:
        self.service, self.name, self.is_open = service, name, True

    def __del__(self) -> None:
        if self.is_open:  # Python calls it again at destruction, when the model may have a new slot
            self.is_open = False
            self.service.unload(self.name)


class _Metrics:
    """Metrics that Ray exports to Prometheus, labelled with application, deployment and replica."""

    def __init__(self) -> None:
        self.requests = metrics.Counter("sigrl_requests", "Number of requests.", ("route", "status"))
        self.seconds = metrics.Histogram(
            "sigrl_request_seconds", "Duration of a request.",
            [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10], ("route",),
        )  # fmt: skip
        self.images = metrics.Counter("sigrl_images", "Number of tagged images.")
        self.batches = metrics.Histogram(
            "sigrl_batch_images", "Number of images in a batch.", [1, 2, 4, 8, 16, 32, 64, 128]
        )

    def record_request(self, route: str, status: int, seconds: float) -> None:
        self.requests.inc(1, {"route": route, "status": str(status)})
        self.seconds.observe(seconds, {"route": route})

    def record_batch(self, num_images: int) -> None:
        self.images.inc(num_images)
        self.batches.observe(num_images)


def serve_until_stopped(
    config: ServeConfig, replicas: Replicas, host: str, port: int, metrics_port: int | None
) -> None:
    """Serves until SIGINT or SIGTERM, on this machine or on the cluster that RAY_ADDRESS names.

    Raises:
        ConfigError: `host` is reachable from the network without keys, or the port is taken.
        CheckpointError: a checkpoint cannot be loaded.
    """
    if config.api_keys is None and not config.allow_anonymous:
        if not _is_loopback(host):
            raise ConfigError(
                f"host is {host}, and there are no API keys, so anyone on the network could use the server; create "
                "keys (serve.py --new-key NAME --api-keys FILE) and add --api-keys FILE, or add --allow-anonymous"
            )
        config = replace(config, allow_anonymous=True)
    for uri in config.checkpoints.values():
        checkpoint_version(uri)  # a missing checkpoint is reported before Ray starts
    if config.api_keys:
        ApiKeys.load(config.api_keys)
    _require_free_port(host, port)
    logger.setLevel(logging.WARNING)
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", PROXY_CALLBACK)
    with haproxy_ingress(host, port, raw_no_replica_response(), metrics_port is not None) as http_options:
        connect(dashboard=True, metrics_port=metrics_port)
        serve.start(http_options=http_options)
        serve.run(
            build(Arguments(config=config, replicas=replicas)),
            name="tags",
            route_prefix="/",
            logging_config={"enable_access_log": False},
        )
        stopped = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())  # after Ray's own handlers
        name = f"[{host}]" if ":" in host else "localhost" if _is_loopback(host) else host
        print(f"serving: http://{name}:{port}/ (page), http://{name}:{port}/openapi.json; Ctrl-C stops", flush=True)
        while not stopped.wait(1):
            pass
        print("stopping: finishing the requests in progress", flush=True)
        serve.delete("tags")  # waits for them; the proxies keep running
        ray.shutdown()  # stops HAProxy too


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _require_free_port(host: str, port: int) -> None:
    if not 1 <= port <= 65_535:
        raise ConfigError(f"port is {port}; expected 1 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"port: cannot listen on {host}:{port} ({error.strerror}); choose another --port"
            ) from error
