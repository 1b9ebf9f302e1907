"""The OpenAPI document, where FastAPI cannot tell it from the routes: `/v1/tag` reads its body itself."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from sigrl_core.serving.messages import TagRequest
from sigrl_core.serving.problems import ProblemBody


def tag_body() -> dict[str, Any]:
    """Both ways to send pictures, as OpenAPI has them."""
    form = {
        "type": "object",
        "required": ["images"],
        "properties": {
            "images": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}},
            "labels": {"type": "string", "description": "As in JSON. Or a label a line."},
            **{
                name: {"type": "string", "description": "As in JSON."}
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
    """Those that the routes refer to by name alone."""
    whole = app.openapi

    def openapi() -> dict[str, Any]:
        document = whole()
        schemas = document["components"].setdefault("schemas", {})
        for kind in (TagRequest, ProblemBody):
            schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
            for name, inner in schema.pop("$defs", {}).items():
                schemas.setdefault(name, inner)
            schemas[kind.__name__] = schema
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{}, {"key": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
