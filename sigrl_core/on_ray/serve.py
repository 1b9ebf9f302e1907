"""checkpoint -> tags over HTTP, under Ray Serve. An adapter: what answers is serving.service, behind serving.app.

A replica holds the models, decodes in threads and sends what waits through the model together: one process, so no
picture is copied between two. While the model is at work the next batch gathers, and where nothing waits a request goes
alone, at once.
"""

# No postponed annotations here: Serve reads the type of `build`'s argument as it stands.
import asyncio
import ipaddress
import logging
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.util import metrics

from sigrl_core.checkpoint import checkpoint_version
from sigrl_core.errors import ConfigError, SigrlError
from sigrl_core.on_ray.haproxy import before_replicas
from sigrl_core.on_ray.session import connect, device_of
from sigrl_core.serving.app import create_app
from sigrl_core.serving.keys import ApiKeys
from sigrl_core.serving.messages import Tagged
from sigrl_core.serving.middleware import IN_PROXIES, unanswered
from sigrl_core.serving.rates import Buckets, Leases
from sigrl_core.serving.service import Job, Service
from sigrl_core.serving.settings import ServeConfig

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """Where it runs."""

    least: int = 1
    """Replicas at least."""
    most: int = 1
    """Replicas at most; they come and go with what waits."""
    cpus: float = 1.0
    """Of each: threads that decode, and compute where there is no GPU."""
    gpus: float = 0.0
    """Of each; 0.5 puts two on a GPU, 0 computes on CPU."""
    drain_seconds: float = 30.0
    """That a replica which is to go may take for what it has begun."""

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ConfigError(f"replicas: least is {self.least}, most {self.most}; expected 1 <= least <= most")
        if self.cpus <= 0 or self.gpus < 0:
            raise ConfigError(f"replicas: cpus is {self.cpus}, gpus {self.gpus}; expected above 0, and 0 or more")


class Arguments(BaseModel):
    """`args` of the application in a Serve file."""

    model_config = ConfigDict(extra="forbid")

    config: ServeConfig
    replicas: Replicas = Replicas()


def build(arguments: Arguments) -> serve.Application:
    """The application that `serve deploy` starts; see cluster/serve.yaml.

    Raises:
        ConfigError: everybody could ask, and nobody has said so.
    """
    config, replicas = arguments.config, arguments.replicas
    if config.api_keys is None and not config.open_to_everyone:
        raise ConfigError(
            "api_keys: none are given, so everybody who reaches the server could ask it; give a file of keys "
            "(serve.py --new-key NAME), or say open_to_everyone"
        )
    deployment = Server.options(
        max_ongoing_requests=2 * config.batch_size + 16,  # a batch, the next one, and who asks for no tags
        max_queued_requests=config.max_queued,
        autoscaling_config={
            "min_replicas": replicas.least,
            "max_replicas": replicas.most,
            "target_ongoing_requests": 4,
            "upscale_delay_s": 5,
            "downscale_delay_s": 120,
        },
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        graceful_shutdown_timeout_s=replicas.drain_seconds,
        user_config={"checkpoint": config.checkpoint, "models": dict(config.models)},
    )
    return deployment.bind(config, replicas, Rates.bind())


@serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000)
class Rates:
    """What clients have asked of all replicas."""

    def __init__(self) -> None:
        self.buckets = Buckets()

    async def take(self, client: str, per_minute: float, wanted: int) -> tuple[int, float]:
        return self.buckets.take(client, per_minute, wanted)


@serve.deployment(
    backpressure_config={"status_code": 503, "retry_after_s": 1}, health_check_period_s=5, health_check_timeout_s=60
)
@serve.ingress()
class Server:
    """One replica."""

    def __init__(self, config: ServeConfig, replicas: Replicas, rates: DeploymentHandle) -> None:
        threads = max(1, int(replicas.cpus))
        torch.set_num_threads(threads)
        self.service = Service(config, device_of(replicas.gpus))
        self.keys = ApiKeys.load(config.api_keys) if config.api_keys else None
        self.rates, self.threads = rates, threads
        gather: Any = self._gather
        gather.set_max_batch_size(max(config.batch_size, config.max_images))  # a request is never divided
        self.model_thread = ThreadPoolExecutor(1, "model")
        self.counters = _Counters()
        threading.Thread(target=self._follow, daemon=True).start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        async def take(client: str, per_minute: float, wanted: int) -> tuple[int, float]:
            try:
                return await self.rates.take.remote(client, per_minute, wanted)
            except (RayError, RayServeException) as error:  # it starts again, or all are about to end
                logger.warning("rates are not counted: %s", type(error).__name__)
                return wanted, 0.0

        async def place(name: str) -> _Held:
            return _Held(self.service, name)

        hold: Any = serve.multiplexed(max_num_models_per_replica=self.service.config.models_at_once)(place)
        answer: Any = self._gather  # takes lists and is given one at a time
        return create_app(
            self.service, answer, lambda: self.keys, Leases(take), self.counters.request, self.threads, hold
        )

    async def reconfigure(self, changed: dict[str, Any]) -> None:
        """Other checkpoints, while requests go on."""
        await asyncio.to_thread(self.service.refresh, replace(self.service.config, **changed), strict=True)

    def check_health(self) -> None:
        """Nothing: that it answers at all is what Serve asks."""

    @serve.batch(
        max_batch_size=32,
        batch_wait_timeout_s=0,
        max_concurrent_batches=1,
        batch_size_fn=lambda jobs: sum(len(job.crops) for job in jobs),
    )
    async def _gather(self, jobs: list[Job]) -> list[list[Tagged]]:
        self.counters.batch(sum(len(job.crops) for job in jobs))
        return await asyncio.get_running_loop().run_in_executor(self.model_thread, self.service.answer, jobs)

    def _follow(self) -> None:
        """Takes what is published where the checkpoints and keys came from."""
        while True:
            time.sleep(self.service.config.follow_seconds)
            try:
                if changed := self.service.refresh():
                    logger.info("took over new checkpoints of %s", ", ".join(changed))
                if uri := self.service.config.api_keys:
                    self.keys = ApiKeys.load(uri)
            except (SigrlError, OSError) as error:
                logger.warning("goes on as before: %s", error)


class _Held:
    """A model's place in a replica. Serve notes which replica has one, sends requests that name it in their header
    there, and calls `__del__` on the place of the model asked for least recently, for another one."""

    def __init__(self, service: Service, name: str) -> None:
        self.service, self.name, self.kept = service, name, True

    def __del__(self) -> None:
        if self.kept:  # Python calls it once more, when the name may have another place
            self.kept = False
            self.service.unload(self.name)


class _Counters:
    """What Ray exports for Prometheus, each with the name of application, deployment and replica."""

    def __init__(self) -> None:
        self.requests = metrics.Counter("sigrl_requests", "Requests answered.", ("route", "status"))
        self.seconds = metrics.Histogram(
            "sigrl_request_seconds", "Until a request was answered.",
            [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10], ("route",),
        )  # fmt: skip
        self.images = metrics.Counter("sigrl_images", "Pictures tagged.")
        self.batches = metrics.Histogram(
            "sigrl_batch_images", "Pictures that went through the model together.", [1, 2, 4, 8, 16, 32, 64, 128]
        )

    def request(self, route: str, status: int, seconds: float) -> None:
        self.requests.inc(1, {"route": route, "status": str(status)})
        self.seconds.observe(seconds, {"route": route})

    def batch(self, images: int) -> None:
        self.images.inc(images)
        self.batches.observe(images)


def serve_until_stopped(
    config: ServeConfig, replicas: Replicas, host: str, port: int, metrics_port: int | None
) -> None:
    """Serves on this machine, or through the proxies of the cluster that RAY_ADDRESS names, until SIGINT or SIGTERM.

    Raises:
        ConfigError: everybody on the network could ask, and nobody has said so; the port is taken.
        CheckpointError: a checkpoint cannot be loaded.
    """
    if config.api_keys is None and not config.open_to_everyone:
        if not _is_loopback(host):
            raise ConfigError(
                f"host is {host}, and there are no keys, so everybody on the network could ask; make some (serve.py "
                "--new-key NAME --api-keys FILE) and give --api-keys FILE, or say --open-to-everyone"
            )
        config = replace(config, open_to_everyone=True)
    for uri in config.checkpoints.values():
        checkpoint_version(uri)  # what is not there is said here, in a line
    if config.api_keys:
        ApiKeys.load(config.api_keys)
    _check_free(host, port)
    logger.setLevel(logging.WARNING)
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", IN_PROXIES)  # proxies and replicas inherit it
    with before_replicas(host, port, unanswered(), metrics_port is not None) as http_options:
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
            signal.signal(number, lambda *_: stopped.set())  # after Ray has set its own
        shown = f"[{host}]" if ":" in host else "localhost" if _is_loopback(host) else host
        print(f"serving: http://{shown}:{port}/ (page), http://{shown}:{port}/openapi.json; Ctrl-C ends", flush=True)
        while not stopped.wait(1):
            pass
        print("stopping: what was begun is finished first", flush=True)
        serve.delete("tags")  # waits for that, while the proxies stay
        ray.shutdown()  # HAProxy with it


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_free(host: str, port: int) -> None:
    if not 1 <= port <= 65_535:
        raise ConfigError(f"port is {port}; expected 1 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"port: cannot listen on {host}:{port} ({error.strerror}); choose another --port"
            ) from error
