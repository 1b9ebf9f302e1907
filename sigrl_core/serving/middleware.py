"""What stands around the application: in each replica, and before all of them in each of Serve's proxies.

Serve calls `in_proxies` where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it; serve.py does so itself.
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

from sigrl_core.serving.problems import MEDIA_TYPE, problem

logger = logging.getLogger(__name__)

IN_PROXIES = f"{__name__}:in_proxies"
Told = Callable[[str, int, float], None]
"""Is told of every request: route, status and seconds."""


class BodyLimit:
    """Refuses larger bodies, by what they say and by what arrives, and more of them at once than memory is for.

    Args:
        most: bytes of one.
        together: bytes of all that are being read or answered.
    """

    def __init__(self, app: ASGIApp, most: int, together: int) -> None:
        self.app, self.most, self.together = app, most, together
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        told = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        size = int(told) if told.isdigit() else self.most + 1
        if size > self.most:
            await problem(413, self._detail)(scope, receive, send)
            return
        if self.held + size > self.together:
            await problem(503, "too much is being read already; ask again later", 1)(scope, receive, send)
            return
        arrived, held = 0, size

        async def counted() -> Message:
            nonlocal arrived, held
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > self.most:
                raise HTTPException(413, self._detail)  # the one kind that whoever reads a body lets through
            self.held += max(0, arrived - held)
            held = max(held, arrived)
            return message

        self.held += held
        try:
            await self.app(scope, counted, send)
        finally:
            self.held -= held

    @property
    def _detail(self) -> str:
        return f"body: at most {self.most} bytes are taken; send fewer pictures at once"


class Watch:
    """Tells of every request, by its route and not by what was asked for."""

    def __init__(self, app: ASGIApp, told: Told) -> None:
        self.app, self.told = app, told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, status = time.monotonic(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception as error:
            await _unexpected(error)(scope, receive, noted)
        finally:
            if scope["type"] == "http":
                route = getattr(scope.get("route"), "path", "elsewhere")
                self.told(route, status, time.monotonic() - started)


def _unexpected(error: Exception) -> JSONResponse:
    """Logged without its message, which may quote what a client sent."""
    number = secrets.token_hex(4)
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("unexpected %s, number %s\n%s", type(error).__name__, number, frames)
    return problem(500, f"unexpected; the server's log has it under {number}")


def in_proxies() -> list[Middleware]:
    """For Serve, which takes the function."""
    return [Middleware(ProxyProblems)]


class ProxyProblems:
    """What proxies answer themselves, as problem documents: 503 where all replicas are busy, and where one has died at
    a request. Serve sends nothing then, which its proxy tells as 500, as of one that fails each time."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = replaced = False

        async def told(message: Message) -> None:
            nonlocal started, replaced
            if message["type"] == "http.response.start":
                started = True
                kinds = [value for name, value in message.get("headers", ()) if name.lower() == b"content-type"]
                if message["status"] == 503 and kinds != [MEDIA_TYPE.encode()]:
                    replaced = True
                    await problem(503, "all are busy; ask again later", 1)(scope, receive, send)
            if not replaced:
                await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await self.app(scope, receive, told)
        if not started:
            await _gone()(scope, receive, send)


def _gone() -> JSONResponse:
    return problem(503, "what was answering is gone; ask again", 1)


def unanswered() -> str:
    """The whole HTTP response where no replica gives one, for a proxy that is no Python."""
    response = _gone()
    headers = "".join(f"{name.decode()}: {value.decode()}\r\n" for name, value in response.raw_headers)
    return f"HTTP/1.1 503 {HTTPStatus.SERVICE_UNAVAILABLE.phrase}\r\n{headers}\r\n{bytes(response.body).decode()}"
