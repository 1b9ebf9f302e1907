"""The HTTP interface: what comes in is checked, and what is wrong is said. What answers is given to `create_app`."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib import resources
from typing import Any, Protocol, TypeVar

import numpy as np
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

import sigrl_core
from sigrl_core.errors import CheckpointError, ImageError, StorageError, VocabularyError
from sigrl_core.serving.document import add_schemas, tag_body
from sigrl_core.serving.keys import ApiKeys
from sigrl_core.serving.messages import (
    Asking,
    ModelResponse,
    NewVocabulary,
    Tagged,
    TagRequest,
    TagResponse,
    VocabularyNames,
    VocabularyResponse,
)
from sigrl_core.serving.middleware import BodyLimit, Told, Watch
from sigrl_core.serving.problems import ProblemError, documented, problem
from sigrl_core.serving.rates import Leases
from sigrl_core.serving.service import Job, Model, Service, UnavailableError, UnknownError
from sigrl_core.serving.vocabularies import TakenError
from sigrl_core.vocabulary import Vocabulary, nonblank_lines

MULTIPART_FIELDS = 16
"""Of a form, besides pictures."""
FIELD_BYTES = 1_000_000
"""Of one of these: a long label list."""
UNREADABLE = {"too_many_pixels": 413, "not_an_image": 415, "unsupported": 415, "empty": 422, "truncated": 422}
"""Statuses for a request whose pictures are all like that, by the reason of the first."""
PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
T = TypeVar("T")


class Answer(Protocol):
    """Gives a request to the model, among others."""

    def __call__(self, job: Job) -> Awaitable[list[Tagged]]: ...


Hold = Callable[[str], Awaitable[Any]]
"""Is told of every model that is about to be used, and may have another one unloaded for it."""


async def hold_all(name: str) -> None:
    """Nothing is unloaded."""


def create_app(
    service: Service,
    answer: Answer,
    keys: Callable[[], ApiKeys | None],
    leases: Leases,
    told: Told = lambda route, status, seconds: None,
    threads: int = 1,
    hold: Hold = hold_all,
) -> FastAPI:
    """The application of one replica.

    Args:
        service: the models.
        answer: has a request tagged.
        keys: who may ask, as of now; None is everyone.
        leases: how often.
        told: is told of every request.
        threads: that decode.
        hold: makes room for a model.
    """
    api = Api(service, answer, keys, leases, threads, hold)
    app = FastAPI(
        title="SigRL tags",
        version=sigrl_core.__version__,
        description="Tags pictures with labels of your own, seen in training or not.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    limits = service.config
    app.add_middleware(BodyLimit, most=limits.max_body_bytes, together=limits.max_held_bytes)
    app.add_middleware(Watch, told=told)
    app.add_exception_handler(ProblemError, lambda _, error: error.response())  # type: ignore
    app.add_exception_handler(HTTPException, _http_problem)  # type: ignore
    app.add_exception_handler(RequestValidationError, _invalid)  # type: ignore
    allowed = [Depends(api.allowed)]
    common = documented(401, 422, 429)

    @app.post(
        "/v1/tag",
        response_model=TagResponse,
        response_model_exclude_none=True,
        dependencies=allowed,
        responses={**common, **documented(400, 404, 413, 415, 503)},
        openapi_extra={"requestBody": tag_body()},
        summary="Tags pictures",
    )
    async def tag(request: Request) -> TagResponse:
        return await api.tag(request)

    @app.get(
        "/v1/vocabulary", dependencies=allowed, responses={**common, **documented(404, 503)}, summary="A model's labels"
    )
    async def vocabulary(model: str | None = None) -> VocabularyResponse:
        return _vocabulary((await api.model(model)).tagger.vocabulary)

    @app.get("/v1/vocabularies", dependencies=allowed, responses=common, summary="Names of the label lists kept here")
    async def vocabularies() -> VocabularyNames:
        return VocabularyNames(names=await api.run(service.vocabularies.names))

    @app.get(
        "/v1/vocabularies/{name}",
        dependencies=allowed,
        responses={**common, **documented(404)},
        summary="A label list kept here",
    )
    async def named(name: str) -> VocabularyResponse:
        return _vocabulary(await api.run(service.vocabulary, name), name)

    @app.post(
        "/v1/vocabularies",
        status_code=201,
        dependencies=allowed,
        responses={200: {"model": VocabularyResponse}, **common, **documented(400, 409, 413, 503)},
        summary="Keeps a label list under a name",
    )
    async def keep(new: NewVocabulary, response: Response) -> VocabularyResponse:
        kept, is_new = await api.run(service.keep, new.name, new.labels)
        response.status_code = 201 if is_new else 200
        return _vocabulary(kept, new.name)

    @app.get("/v1/model", dependencies=allowed, responses={**common, **documented(404, 503)}, summary="What answers")
    async def model(model: str | None = None) -> ModelResponse:
        return _model(await api.model(model), service)

    @app.get("/healthz", summary="Whether the process is alive")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", summary="Whether requests would be answered", responses=documented(503))
    async def readyz() -> dict[str, str]:
        if not api.may_wait(1):
            raise ProblemError(503, "as many pictures wait as may", retry_after=1)
        return {"status": "ready"}

    for path, (name, media_type) in PAGE.items():
        content = resources.files("sigrl_core.serving").joinpath("page", name).read_bytes()
        headers = {"Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff"}
        headers |= {"Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}

        async def page(content=content, media_type=media_type, headers=headers) -> Response:
            return Response(content, media_type=media_type, headers=headers)

        app.add_api_route(path, page, include_in_schema=False)
    add_schemas(app)
    return app


class Api:
    """What the routes do; see `create_app`."""

    def __init__(
        self,
        service: Service,
        answer: Answer,
        keys: Callable[[], ApiKeys | None],
        leases: Leases,
        threads: int,
        hold: Hold,
    ) -> None:
        self.service, self.answer, self.keys, self.leases, self.hold = service, answer, keys, leases, hold
        self.decoders = ThreadPoolExecutor(max(1, threads), "decode")
        self.waiting = 0
        """Pictures of requests that have not been answered."""

    async def allowed(self, request: Request) -> None:
        """Refuses those who may not ask, or not so often."""
        keys, client, rate = self.keys(), "everyone", self.service.config.requests_per_minute
        if keys is not None:
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            presented = key.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
            found = keys.of(presented) if presented else None
            if found is None:
                raise ProblemError(401, "unknown key" if presented else "a key is wanted, as Authorization: Bearer KEY")
            client, rate = found.name, found.requests_per_minute or rate
        if wait := await self.leases.wait_for(client, rate):
            raise ProblemError(429, f"{rate} requests a minute are allowed; ask again later", retry_after=wait)

    async def tag(self, request: Request) -> TagResponse:
        """Reads, decodes and tags the pictures of a request."""
        with self._waiting(1):  # before its body is read, which may be all there is time for
            pictures, asking = await self._read(request)
        most = self.service.config.max_images
        if len(pictures) > most:
            raise ProblemError(413, f"images: {len(pictures)} are given; at most {most} are taken at once")
        with self._waiting(len(pictures)):
            await self._hold(asking.model)
            question = await self.run(self.service.question, asking)
            loop = asyncio.get_running_loop()
            crops = await asyncio.gather(
                *(loop.run_in_executor(self.decoders, self.service.crop, data, question.model) for data in pictures)
            )
            _refuse_unreadable(crops)
            results = await self.answer(Job(question, crops))
        return TagResponse(
            model=question.model.name,
            checkpoint=question.model.version,
            vocabulary=question.vocabulary.hash,
            labels=len(question.vocabulary),
            probabilities=question.threshold is not None,
            results=results,
        )

    def may_wait(self, count: int) -> bool:
        """Whether so many more pictures may wait."""
        return self.waiting + count <= self.service.config.max_waiting

    @contextmanager
    def _waiting(self, count: int) -> Iterator[None]:
        """So many more pictures wait, if they may."""
        if not self.may_wait(count):
            raise ProblemError(503, f"{self.waiting} pictures wait already; ask again later", retry_after=1)
        self.waiting += count
        try:
            yield
        finally:
            self.waiting -= count

    async def run(self, call: Callable[..., T], *arguments: Any) -> T:
        """In a thread, with what is the client's fault said to it."""
        try:
            return await asyncio.to_thread(call, *arguments)
        except UnknownError as error:
            raise ProblemError(404, str(error)) from error
        except TakenError as error:
            raise ProblemError(409, str(error)) from error
        except (VocabularyError, CheckpointError) as error:
            raise ProblemError(422, str(error)) from error
        except UnavailableError as error:
            raise ProblemError(503, str(error), retry_after=5) from error
        except StorageError as error:
            raise ProblemError(503, "the place where label lists are kept cannot be reached", retry_after=5) from error

    async def _read(self, request: Request) -> tuple[list[bytes], Asking]:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type == "application/json":
            return _of_json(await request.body())
        if media_type == "multipart/form-data":
            return await self._of_form(request)
        raise ProblemError(415, "content-type: expected multipart/form-data or application/json")

    async def _of_form(self, request: Request) -> tuple[list[bytes], Asking]:
        most = self.service.config.max_images + 1  # so that one more is told by what is expected
        try:
            form = await request.form(max_files=most, max_fields=MULTIPART_FIELDS, max_part_size=FIELD_BYTES)
        except HTTPException as error:
            raise ProblemError(error.status_code, f"form: {error.detail}") from error
        pictures, fields = [], {}
        try:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    if name != "images":
                        raise ProblemError(422, "form: pictures are expected as files named images")
                    pictures.append(await value.read())
                elif name in fields:
                    raise ProblemError(422, "form: a field is given twice")
                else:
                    fields[name] = value
        finally:
            await form.close()
        if not pictures:
            raise ProblemError(422, "images: expected one file or more of that name")
        return pictures, _validated(Asking, {name: _field(name, value) for name, value in fields.items()})

    async def model(self, name: str | None) -> Model:
        """A model by its name, in memory."""
        await self._hold(name)
        return await self.run(self.service.model, name)

    async def _hold(self, name: str | None) -> None:
        if name in self.service.config.models:
            await self.hold(name)


# ---- reading ----


def _of_json(body: bytes) -> tuple[list[bytes], Asking]:
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProblemError(400, "body: not valid JSON") from error
    asked = _validated(TagRequest, sent)
    pictures = []
    for number, text in enumerate(asked.images, 1):
        try:
            pictures.append(base64.b64decode(text.encode(), validate=True))
        except (binascii.Error, ValueError) as error:
            raise ProblemError(422, f"images, number {number}: not valid base64") from error
    return pictures, asked


def _field(name: str, value: str) -> Any:
    """A form's text as JSON would have it: a list of labels may come a line each."""
    if name == "labels":
        try:
            return json.loads(value) if value.lstrip().startswith("[") else nonblank_lines(value)
        except (ValueError, RecursionError) as error:
            raise ProblemError(422, "labels: expected a JSON array, or a label a line") from error
    if name in ("top_k", "threshold", "heatmap"):
        with suppress(ValueError, RecursionError):  # checked as it is, then
            return json.loads(value)
    return value


Body = TypeVar("Body", bound=Asking)


def _validated(kind: type[Body], value: Any) -> Body:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise ProblemError(422, _first(error.errors())) from error


def _first(errors: Any) -> str:
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return f"{where or 'body'}: {first['msg']}"[:300]


def _refuse_unreadable(crops: Sequence[np.ndarray | ImageError]) -> None:
    """Where not one picture can be read; with others, a picture's error is in its place among the results."""
    reasons = [crop.reason for crop in crops if isinstance(crop, ImageError)]
    if len(reasons) == len(crops):
        told = ", ".join(f"{count} {reason}" for reason, count in Counter(reasons).items())
        raise ProblemError(UNREADABLE[reasons[0]], f"images: none can be read: {told}", reasons=reasons)


# ---- what goes wrong ----


async def _http_problem(_: Request, error: HTTPException) -> JSONResponse:
    told = {404: "there is nothing here; /openapi.json tells what there is", 405: "not by this method"}
    return problem(error.status_code, told.get(error.status_code, str(error.detail)), headers=error.headers)


async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    status = 400 if error.errors()[0]["type"] == "json_invalid" else 422
    return problem(status, _first(error.errors()))


# ---- what is answered ----


def _vocabulary(vocabulary: Vocabulary, name: str | None = None) -> VocabularyResponse:
    return VocabularyResponse(name=name, hash=vocabulary.hash, labels=vocabulary.to_rows())


def _model(model: Model, service: Service) -> ModelResponse:
    checkpoint, limits = model.tagger.checkpoint, service.config
    return ModelResponse(
        name=model.name,
        checkpoint=model.version,
        code_version=sigrl_core.__version__,
        backbone=checkpoint.config.backbone.name,
        image_size=checkpoint.recogniser.backbone.image_size,
        seen_labels=len(checkpoint.vocabulary.positions("seen")),
        unseen_labels=len(checkpoint.vocabulary.positions("unseen")),
        calibrated=checkpoint.calibration is not None,
        others=sorted(set(limits.checkpoints) - {model.name}),
        limits={
            name: getattr(limits, name)
            for name in ("max_body_bytes", "max_images", "max_pixels", "max_labels", "requests_per_minute")
        },
    )
