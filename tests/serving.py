"""The server's application without Ray, whose model answers each request alone."""

import asyncio

from fastapi import FastAPI

from sigrl_core.serving.app import create_app
from sigrl_core.serving.keys import ApiKeys
from sigrl_core.serving.messages import Tagged
from sigrl_core.serving.rates import Buckets, Leases
from sigrl_core.serving.service import Job, Service
from sigrl_core.serving.settings import ServeConfig


def app_of(config: ServeConfig, keys: ApiKeys | None = None) -> FastAPI:
    service, buckets = Service(config), Buckets()

    async def answer(job: Job) -> list[Tagged]:
        return (await asyncio.to_thread(service.answer, [job]))[0]

    async def take(client: str, per_minute: float, wanted: int) -> tuple[int, float]:
        return buckets.take(client, per_minute, wanted)

    return create_app(service, answer, lambda: keys, Leases(take))
