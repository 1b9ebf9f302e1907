"""Errors of the HTTP interface as RFC 9457 problem documents."""

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
    title: str = Field(description="The HTTP status in words.")
    status: int
    detail: str = Field(description="What was found, what was expected, and what to do.")
    reasons: list[str] | None = Field(None, description="Error of each image, if no image of the request is readable.")


class ProblemError(Exception):
    """A request that is answered with a problem document.

    Args:
        status: HTTP status.
        detail: what was found, what was expected, and what to do.
        retry_after: seconds after which a retry may succeed.
        reasons: error of each image.
    """

    def __init__(
        self, status: int, detail: str, retry_after: float | None = None, reasons: list[str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.retry_after, self.reasons = status, detail, retry_after, reasons

    def response(self) -> JSONResponse:
        return problem_response(self.status, self.detail, self.retry_after, reasons=self.reasons)


def problem_response(
    status: int,
    detail: str,
    retry_after: float | None = None,
    headers: Mapping[str, str] | None = None,
    reasons: list[str] | None = None,
) -> JSONResponse:
    """Builds the HTTP response of a problem; for the arguments see `ProblemError`."""
    headers = dict(headers or {})
    if retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    body = ProblemBody(title=HTTPStatus(status).phrase, status=status, detail=detail, reasons=reasons)
    return JSONResponse(body.model_dump(exclude_none=True), status, headers, MEDIA_TYPE)


def document_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the `responses` argument of a FastAPI route that may answer with these statuses."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}
