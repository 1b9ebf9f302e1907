"""Handles requests: authorisation, admission, decoding and tagging."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from fastapi import Request

from sigrl_core.errors import CheckpointError, ImageError, StorageError, VocabularyError
from sigrl_core.serving.keys import ApiKeys
from sigrl_core.serving.messages import TagResponse, TagResult
from sigrl_core.serving.problems import ProblemError
from sigrl_core.serving.rates import RateLimiter
from sigrl_core.serving.requests import read_request, require_readable
from sigrl_core.serving.service import LoadedModel, ModelUnavailableError, NotFoundError, Service, TagQuery
from sigrl_core.serving.vocabularies import NameTakenError

T = TypeVar("T")

RunQuery = Callable[[TagQuery], Awaitable[list[TagResult]]]
"""Tags the images of one query, usually in a batch with other queries."""
AcquireModel = Callable[[str], Awaitable[Any]]
"""A function that is called with the name of a model before its use, and may unload another one."""


async def keep_all_models(name: str) -> None:
    """An `AcquireModel` that unloads nothing."""


class RequestHandler:
    """Handles the requests of one replica; for the arguments see `create_app`."""

    def __init__(
        self,
        service: Service,
        run_query: RunQuery,
        get_keys: Callable[[], ApiKeys | None],
        rate_limiter: RateLimiter,
        num_threads: int,
        acquire_model: AcquireModel,
    ) -> None:
        self.service, self.run_query, self.get_keys = service, run_query, get_keys
        self.rate_limiter, self.acquire_model = rate_limiter, acquire_model
        self.decoders = ThreadPoolExecutor(max(1, num_threads), "decode")
        self.num_pending = 0
        """Images of requests that are not answered yet."""

    async def authorise(self, request: Request) -> None:
        """Raises ProblemError if the request has no valid key or exceeds its client's rate limit."""
        keys, client, rate = self.get_keys(), "anonymous", self.service.config.requests_per_minute
        if keys is not None:
            scheme, _, value = request.headers.get("authorization", "").partition(" ")
            key = value.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
            if not key:
                raise ProblemError(401, "API key required; send the header Authorization: Bearer KEY")
            record = keys.find(key)
            if record is None:
                raise ProblemError(401, "unknown API key; check it with the server's operator")
            client, rate = record.name, record.requests_per_minute or rate
        if wait := await self.rate_limiter.acquire(client, rate):
            raise ProblemError(429, f"rate limit: {rate} requests per minute; retry later", retry_after=wait)

    async def tag(self, request: Request) -> TagResponse:
        """Reads, decodes and tags the images of a request."""
        max_images = self.service.config.max_images
        with self._admit(1):  # before the body is read, because reading may take most of the time
            files, options = await read_request(request, max_images)
        if len(files) > max_images:
            raise ProblemError(413, f"images: found {len(files)}, expected at most {max_images} per request")
        with self._admit(len(files)):
            await self._acquire(options.model)
            query = await self.run(self.service.create_query, options)
            images = await self.decode(files, query.model)
            require_readable(images)
            results = await self.run_query(replace(query, images=images))
        return TagResponse(
            model=query.model.name,
            checkpoint=query.model.version,
            vocabulary=query.vocabulary.hash,
            labels=len(query.vocabulary),
            probabilities=query.threshold is not None,
            results=results,
        )

    async def decode(self, files: Sequence[bytes], model: LoadedModel) -> list[np.ndarray | ImageError]:
        """Decodes images in threads; see `Service.decode`."""
        loop = asyncio.get_running_loop()
        calls = (loop.run_in_executor(self.decoders, self.service.decode, file, model) for file in files)
        return await asyncio.gather(*calls)

    def has_capacity(self, num_images: int) -> bool:
        """Returns whether this replica admits `num_images` more images."""
        return self.num_pending + num_images <= self.service.config.max_pending_images

    @contextmanager
    def _admit(self, num_images: int) -> Iterator[None]:
        """Counts images as pending during the body; raises ProblemError if there are too many."""
        if not self.has_capacity(num_images):
            raise ProblemError(503, f"overloaded: {self.num_pending} images are pending; retry later", retry_after=1)
        self.num_pending += num_images
        try:
            yield
        finally:
            self.num_pending -= num_images

    async def run(self, call: Callable[..., T], *arguments: Any) -> T:
        """Runs a blocking call in a thread and raises its errors as ProblemError, with an HTTP status."""
        try:
            return await asyncio.to_thread(call, *arguments)
        except NotFoundError as error:
            raise ProblemError(404, str(error)) from error
        except NameTakenError as error:
            raise ProblemError(409, str(error)) from error
        except (VocabularyError, CheckpointError) as error:
            raise ProblemError(422, str(error)) from error
        except ModelUnavailableError as error:
            raise ProblemError(503, str(error), retry_after=5) from error
        except StorageError as error:
            raise ProblemError(503, "vocabularies: their storage is unreachable; retry later", retry_after=5) from error

    async def model(self, name: str | None) -> LoadedModel:
        """Loads a model, if it is not loaded, and returns it; None is the default model."""
        await self._acquire(name)
        return await self.run(self.service.model, name)

    async def _acquire(self, name: str | None) -> None:
        if name in self.service.config.models:
            await self.acquire_model(name)
