"""Creates the HTTP application of one replica."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

import sigrl_core
from sigrl_core.serving.handlers import AcquireModel, RequestHandler, RunQuery, keep_all_models
from sigrl_core.serving.keys import ApiKeys
from sigrl_core.serving.middleware import BodyLimit, OnRequest, RequestMetrics
from sigrl_core.serving.openapi import add_schemas
from sigrl_core.serving.problems import ProblemError, problem_response
from sigrl_core.serving.rates import RateLimiter
from sigrl_core.serving.requests import describe_first_error
from sigrl_core.serving.routes import create_router
from sigrl_core.serving.service import Service

PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def create_app(
    service: Service,
    run_query: RunQuery,
    get_keys: Callable[[], ApiKeys | None],
    rate_limiter: RateLimiter,
    on_request: OnRequest = lambda route, status, seconds: None,
    num_threads: int = 1,
    acquire_model: AcquireModel = keep_all_models,
) -> FastAPI:
    """Creates the application of one replica.

    Args:
        service: the models.
        run_query: tags the images of a request.
        get_keys: returns the current API keys; None admits anonymous clients.
        rate_limiter: limits the requests of each client.
        on_request: called after each request.
        num_threads: threads that decode images.
        acquire_model: called before a named model is used.
    """
    app = FastAPI(
        title="SigRL tags",
        version=sigrl_core.__version__,
        description="Tags images with any labels, seen in training or not.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    limits = service.config
    app.add_middleware(BodyLimit, max_bytes=limits.max_body_bytes, max_inflight_bytes=limits.max_inflight_bytes)
    app.add_middleware(RequestMetrics, on_request=on_request)
    app.add_exception_handler(ProblemError, lambda _, error: error.response())  # type: ignore
    app.add_exception_handler(HTTPException, _http_problem)  # type: ignore
    app.add_exception_handler(RequestValidationError, _validation_problem)  # type: ignore
    handler = RequestHandler(service, run_query, get_keys, rate_limiter, num_threads, acquire_model)
    app.include_router(create_router(handler))
    _add_page(app)
    add_schemas(app)
    return app


def _add_page(app: FastAPI) -> None:
    for path, (name, media_type) in PAGE_FILES.items():
        content = resources.files("sigrl_core.serving").joinpath("page", name).read_bytes()
        app.add_api_route(path, _create_page_endpoint(content, media_type), include_in_schema=False)


def _create_page_endpoint(content: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def page() -> Response:  # FastAPI reads parameters from the query, so there must be none
        return Response(content, media_type=media_type, headers=PAGE_HEADERS)

    return page


async def _http_problem(_: Request, error: HTTPException) -> JSONResponse:
    details = {
        404: "no such path; /openapi.json lists all paths",
        405: "method not allowed for this path; /openapi.json lists the methods",
    }
    detail = details.get(error.status_code, str(error.detail))
    return problem_response(error.status_code, detail, headers=error.headers)


async def _validation_problem(_: Request, error: RequestValidationError) -> JSONResponse:
    status = 400 if error.errors()[0]["type"] == "json_invalid" else 422
    return problem_response(status, describe_first_error(error.errors()))
