"""ASGI middleware: `BodyLimit` and `RequestMetrics` in each replica, `ProxyProblems` in each of Serve's proxies.

Serve calls the function that RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names, `PROXY_CALLBACK`; serve.py sets it.
"""

from __future__ import annotations

import logging
import secrets
import time
import traceback
from collections.abc import Callable
from http import HTTPStatus

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sigrl_core.serving.problems import MEDIA_TYPE, problem_response

logger = logging.getLogger(__name__)

PROXY_CALLBACK = f"{__name__}:proxy_middleware"
OnRequest = Callable[[str, int, float], None]
"""Called after each request with its route, HTTP status and duration in seconds."""


class BodyLimit:
    """Rejects bodies that are too large, and bodies that together exceed this replica's memory limit.

    Both limits apply to the declared size first, and then to the bytes that arrive.

    Args:
        max_bytes: size of one body.
        max_inflight_bytes: total size of the bodies of all requests in progress.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_inflight_bytes: int) -> None:
        self.app, self.max_bytes, self.max_inflight_bytes = app, max_bytes, max_inflight_bytes
        self.inflight_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        header = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        reserved = int(header) if header.isdigit() else self.max_bytes + 1
        if reserved > self.max_bytes:
            await problem_response(413, self._too_large)(scope, receive, send)
            return
        if self.inflight_bytes + reserved > self.max_inflight_bytes:
            detail = "overloaded: the requests in progress use all memory for bodies; retry later"
            await problem_response(503, detail, 1)(scope, receive, send)
            return
        received = 0

        async def receive_counted() -> Message:
            nonlocal received, reserved
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                # Starlette's and FastAPI's body readers pass on this exception, and convert others.
                raise HTTPException(413, self._too_large)
            self.inflight_bytes += max(0, received - reserved)
            reserved = max(reserved, received)
            return message

        self.inflight_bytes += reserved
        try:
            await self.app(scope, receive_counted, send)
        finally:
            self.inflight_bytes -= reserved

    @property
    def _too_large(self) -> str:
        return f"body: expected at most {self.max_bytes} bytes; send fewer images per request"


class RequestMetrics:
    """Reports each request by its route, never by its path, which may contain names; converts unexpected errors."""

    def __init__(self, app: ASGIApp, on_request: OnRequest) -> None:
        self.app, self.on_request = app, on_request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, status = time.monotonic(), 500

        async def send_and_record(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_record)
        except Exception as error:
            await _internal_error(error)(scope, receive, send_and_record)
        finally:
            if scope["type"] == "http":
                route = getattr(scope.get("route"), "path", "other")
                self.on_request(route, status, time.monotonic() - started)


def _internal_error(error: Exception) -> JSONResponse:
    """Logs an error without its message, which may quote a client's data."""
    number = secrets.token_hex(4)
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("internal error %s: %s\n%s", number, type(error).__name__, frames)
    return problem_response(500, f"internal error; the server's log has details under the number {number}")


def proxy_middleware() -> list[Middleware]:
    """Returns the middleware of Serve's proxies."""
    return [Middleware(ProxyProblems)]


in_proxies = proxy_middleware
"""The name in the cluster manifests of version 0.1.0."""


class ProxyProblems:
    """Replaces the proxy's own errors by problem documents.

    - All replicas are busy: the proxy answers 503 with plain text.
    - A replica was lost during a request: Serve sends no response, which its proxy turns into 500, the status of a
      request that fails each time. This one may be retried, so it gets 503.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = replaced = False

        async def send_or_replace(message: Message) -> None:
            nonlocal started, replaced
            if message["type"] == "http.response.start":
                started = True
                media_types = [value for name, value in message.get("headers", ()) if name.lower() == b"content-type"]
                if message["status"] == 503 and media_types != [MEDIA_TYPE.encode()]:
                    replaced = True
                    detail = "overloaded: all replicas are busy; retry later"
                    await problem_response(503, detail, 1)(scope, receive, send)
            if not replaced:
                await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await self.app(scope, receive, send_or_replace)
        if not started:
            await _no_replica()(scope, receive, send)


def _no_replica() -> JSONResponse:
    return problem_response(503, "no response: the replica was lost or is being replaced; retry", 1)


def raw_no_replica_response() -> str:
    """Returns the HTTP/1.1 message of a lost replica, for HAProxy, which sends it as it is."""
    response = _no_replica()
    headers = "".join(f"{name.decode()}: {value.decode()}\r\n" for name, value in response.raw_headers)
    return f"HTTP/1.1 503 {HTTPStatus.SERVICE_UNAVAILABLE.phrase}\r\n{headers}\r\n{bytes(response.body).decode()}"
