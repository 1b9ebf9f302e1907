"""What a client did wrong, or the server cannot do now, as RFC 9457 problem documents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

MEDIA_TYPE = "application/problem+json"


class ProblemBody(BaseModel):
    """RFC 9457."""

    model_config = ConfigDict(json_schema_extra={"example": {
        "type": "about:blank", "title": "Unprocessable Entity", "status": 422,
        "detail": "top_k: expected a whole number from 1 to 2000, found 'many'",
    }})  # fmt: skip

    type: str = "about:blank"
    title: str = Field(description="The status in words.")
    status: int
    detail: str = Field(description="What was found, what was expected, what to do.")
    reasons: list[str] | None = Field(None, description="Why each picture cannot be read, where none can.")


class ProblemError(Exception):
    """A request that gets no answer.

    Args:
        status: of HTTP.
        detail: what was found, what was expected, what to do.
        retry_after: seconds until it may help to ask again.
        reasons: why each picture cannot be read.
    """

    def __init__(
        self, status: int, detail: str, retry_after: float | None = None, reasons: list[str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.retry_after, self.reasons = status, detail, retry_after, reasons

    def response(self) -> JSONResponse:
        return problem(self.status, self.detail, self.retry_after, reasons=self.reasons)


def problem(
    status: int,
    detail: str,
    retry_after: float | None = None,
    headers: Mapping[str, str] | None = None,
    reasons: list[str] | None = None,
) -> JSONResponse:
    """As the client gets it."""
    headers = dict(headers or {})
    if retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    body = ProblemBody(title=HTTPStatus(status).phrase, status=status, detail=detail, reasons=reasons)
    return JSONResponse(body.model_dump(exclude_none=True), status, headers, MEDIA_TYPE)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For FastAPI's `responses`."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}
