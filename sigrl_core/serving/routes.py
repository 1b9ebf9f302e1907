"""The routes of the HTTP interface."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

import sigrl_core
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.plugins import ENDPOINTS
from sigrl_core.serving.handlers import RequestHandler
from sigrl_core.serving.messages import (
    ModelResponse,
    NewVocabulary,
    TagResponse,
    VocabularyNames,
    VocabularyResponse,
)
from sigrl_core.serving.openapi import tag_request_body
from sigrl_core.serving.problems import ProblemError, document_problems
from sigrl_core.serving.service import LoadedModel, Service


def create_router(handler: RequestHandler) -> APIRouter:
    """Creates all routes: public health checks, and the endpoints of `plugins.ENDPOINTS`, which require a key."""
    router = APIRouter()

    @router.get("/healthz", summary="Returns whether the process is alive")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @router.get("/readyz", summary="Returns whether requests are admitted", responses=document_problems(503))
    async def readyz() -> dict[str, str]:
        if not handler.has_capacity(1):
            raise ProblemError(503, "overloaded: the maximum number of images is pending", retry_after=1)
        return {"status": "ready"}

    for name in ENDPOINTS:  # built-in ones first, so that a plug-in cannot replace their routes
        router.include_router(
            ENDPOINTS[name](handler),
            dependencies=[Depends(handler.authorise)],
            responses=document_problems(401, 422, 429),
        )
    return router


def create_tag_router(handler: RequestHandler) -> APIRouter:
    """Creates the built-in endpoints: tagging, label lists and models."""
    service = handler.service
    router = APIRouter(prefix="/v1")

    @router.post(
        "/tag",
        response_model=TagResponse,
        response_model_exclude_none=True,
        responses=document_problems(400, 404, 413, 415, 503),
        openapi_extra={"requestBody": tag_request_body()},
        summary="Tags images",
    )
    async def tag(request: Request) -> TagResponse:
        return await handler.tag(request)

    @router.get("/vocabulary", responses=document_problems(404, 503), summary="Returns a model's labels")
    async def vocabulary(model: str | None = None) -> VocabularyResponse:
        return _to_vocabulary_response((await handler.model(model)).tagger.vocabulary)

    @router.get("/vocabularies", summary="Returns the names of the stored label lists")
    async def vocabularies() -> VocabularyNames:
        return VocabularyNames(names=await handler.run(service.vocabularies.names))

    @router.get("/vocabularies/{name}", responses=document_problems(404), summary="Returns a stored label list")
    async def named_vocabulary(name: str) -> VocabularyResponse:
        return _to_vocabulary_response(await handler.run(service.named_vocabulary, name), name)

    @router.post(
        "/vocabularies",
        status_code=201,
        responses={200: {"model": VocabularyResponse}, **document_problems(400, 409, 413, 503)},
        summary="Stores a label list under a name",
    )
    async def store_vocabulary(new: NewVocabulary, response: Response) -> VocabularyResponse:
        stored, is_new = await handler.run(service.store_vocabulary, new.name, new.labels)
        response.status_code = 201 if is_new else 200
        return _to_vocabulary_response(stored, new.name)

    @router.get("/model", responses=document_problems(404, 503), summary="Describes a model")
    async def model(model: str | None = None) -> ModelResponse:
        return _to_model_response(await handler.model(model), service)

    return router


def _to_vocabulary_response(vocabulary: Vocabulary, name: str | None = None) -> VocabularyResponse:
    return VocabularyResponse(name=name, hash=vocabulary.hash, labels=vocabulary.to_rows())


def _to_model_response(model: LoadedModel, service: Service) -> ModelResponse:
    checkpoint, limits = model.tagger.checkpoint, service.config
    return ModelResponse(
        name=model.name,
        checkpoint=model.version,
        code_version=sigrl_core.__version__,
        backbone=checkpoint.config.backbone.name,
        image_size=checkpoint.model.backbone.image_size,
        seen_labels=len(checkpoint.vocabulary.positions("seen")),
        unseen_labels=len(checkpoint.vocabulary.positions("unseen")),
        calibrated=checkpoint.calibration is not None,
        other_models=sorted(set(limits.checkpoints) - {model.name}),
        limits={
            name: getattr(limits, name)
            for name in ("max_body_bytes", "max_images", "max_pixels", "max_labels", "requests_per_minute")
        },
    )
