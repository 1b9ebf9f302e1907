"""The server's application without Ray; its model runs each request in a batch of its own."""

import asyncio

from fastapi import FastAPI

from sigrl_core.config.stages import ServeConfig
from sigrl_core.serving.app import create_app
from sigrl_core.serving.keys import ApiKeys
from sigrl_core.serving.messages import TagResult
from sigrl_core.serving.rates import RateLimiter, TokenBuckets
from sigrl_core.serving.service import Service, TagQuery


def app_of(config: ServeConfig, keys: ApiKeys | None = None) -> FastAPI:
    service, buckets = Service(config), TokenBuckets()

    async def run_query(query: TagQuery) -> list[TagResult]:
        return (await asyncio.to_thread(service.tag, [query]))[0]

    async def take_tokens(client: str, per_minute: float, requested: int) -> tuple[int, float]:
        return buckets.take(client, per_minute, requested)

    return create_app(service, run_query, lambda: keys, RateLimiter(take_tokens))
