"""Parses tagging requests: multipart forms and JSON bodies."""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from sigrl_core.errors import ImageError
from sigrl_core.labels.vocabulary import nonblank_lines
from sigrl_core.serving.messages import TagOptions, TagRequest
from sigrl_core.serving.problems import ProblemError

MAX_FORM_FIELDS = 16
"""Fields of a form other than images."""
MAX_FIELD_BYTES = 1_000_000
"""Size of such a field; the largest is a label list."""

UNREADABLE_STATUS = {"too_many_pixels": 413, "not_an_image": 415, "unsupported": 415, "empty": 422, "truncated": 422}
"""HTTP status of a request without any readable image, by the error of its first image."""


async def read_request(request: Request, max_images: int) -> tuple[list[bytes], TagOptions]:
    """Returns a request's encoded images and options; raises ProblemError if it is malformed."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "application/json":
        return _parse_json(await request.body())
    if media_type == "multipart/form-data":
        return await _read_form(request, max_images)
    raise ProblemError(415, "content-type: expected multipart/form-data or application/json")


async def _read_form(request: Request, max_images: int) -> tuple[list[bytes], TagOptions]:
    max_files = max_images + 1  # a request with one image too many gets the handler's error, which names the limit
    try:
        form = await request.form(max_files=max_files, max_fields=MAX_FORM_FIELDS, max_part_size=MAX_FIELD_BYTES)
    except HTTPException as error:
        raise ProblemError(error.status_code, f"form: {error.detail}") from error
    images, fields = [], {}
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name != "images":
                    raise ProblemError(422, "form: found a file with another name, expected files named images")
                images.append(await value.read())
            elif name in fields:
                raise ProblemError(422, "form: found a field twice, expected each field once")
            else:
                fields[name] = value
    finally:
        await form.close()
    if not images:
        raise ProblemError(422, "images: expected one or more files of that name")
    return images, _validate(TagOptions, {name: _parse_field(name, value) for name, value in fields.items()})


def _parse_json(body: bytes) -> tuple[list[bytes], TagOptions]:
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProblemError(400, "body: not valid JSON") from error
    request = _validate(TagRequest, payload)
    images = []
    for number, text in enumerate(request.images, 1):
        try:
            images.append(base64.b64decode(text.encode(), validate=True))
        except (binascii.Error, ValueError) as error:
            raise ProblemError(422, f"images, number {number}: not valid base64") from error
    return images, request


def _parse_field(name: str, value: str) -> Any:
    """Converts the text of a form field to the value that a JSON body would have."""
    if name == "labels":
        try:
            return json.loads(value) if value.lstrip().startswith("[") else nonblank_lines(value)
        except (ValueError, RecursionError) as error:
            raise ProblemError(422, "labels: expected a JSON array, or one label per line") from error
    if name in ("top_k", "threshold", "heatmap"):
        with suppress(ValueError, RecursionError):  # `_validate` rejects the text itself
            return json.loads(value)
    return value


Options = TypeVar("Options", bound=TagOptions)


def _validate(model: type[Options], payload: Any) -> Options:
    try:
        return model.model_validate(payload)
    except ValidationError as error:
        raise ProblemError(422, describe_first_error(error.errors())) from error


def describe_first_error(errors: Any) -> str:
    """Returns the location and the message of Pydantic's first error."""
    location = ".".join(str(part) for part in errors[0]["loc"] if part != "body")
    return f"{location or 'body'}: {errors[0]['msg']}"[:300]


def require_readable(images: Sequence[np.ndarray | ImageError]) -> None:
    """Raises ProblemError if no image is readable. If some are, the others have an error in their results."""
    errors = [image for image in images if isinstance(image, ImageError)]
    if len(errors) == len(images):
        reasons = [error.reason for error in errors]
        counts = ", ".join(f"{count} {reason}" for reason, count in Counter(reasons).items())
        detail = f"images: no readable image: {counts}; the first one is {errors[0]}"
        raise ProblemError(UNREADABLE_STATUS[reasons[0]], detail, reasons=reasons)
