"""Adds to the OpenAPI document what FastAPI cannot derive from the routes: `/v1/tag` parses its body itself."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from sigrl_core.serving.messages import TagRequest
from sigrl_core.serving.problems import ProblemBody


def tag_request_body() -> dict[str, Any]:
    """Describes both encodings of a tagging request."""
    form = {
        "type": "object",
        "required": ["images"],
        "properties": {
            "images": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}},
            "labels": {"type": "string", "description": "A JSON array as in TagRequest, or one label per line."},
            **{
                name: {"type": "string", "description": "See TagRequest."}
                for name in ("model", "vocabulary", "top_k", "threshold", "heatmap")
            },
        },
    }
    return {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": form},
            "application/json": {"schema": {"$ref": "#/components/schemas/TagRequest"}},
        },
    }


def add_schemas(app: FastAPI) -> None:
    """Adds the schemas that routes reference only by name, and the authentication scheme."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document["components"].setdefault("schemas", {})
        for model in (TagRequest, ProblemBody):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            for name, definition in schema.pop("$defs", {}).items():
                schemas.setdefault(name, definition)
            schemas[model.__name__] = schema
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{}, {"key": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
