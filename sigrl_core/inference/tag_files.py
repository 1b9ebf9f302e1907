"""The formats of tags on disk: Parquet tables, JSON lines, and sidecars beside the images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from sigrl_core.config import TagConfig

_DETAILED = ("unsupported", "not_an_image", "too_many_pixels")
SIDECAR = ".json"
"""Suffix of a sidecar: the tags of KEY are written to KEY.json."""


def tags_schema(config: TagConfig, embedding_dim: int) -> pa.Schema:
    """Returns the schema of `tags/*.parquet`."""
    fields = [
        pa.field("uri", pa.string(), nullable=False),  # relative to `config.images`
        pa.field("etag", pa.string()),  # of the file or its container: the store's, or size and modification time
        pa.field("size", pa.int64()),  # bytes; null if the listing has no sizes
        pa.field("labels", pa.list_(pa.string()), nullable=False),  # best first
        # rank the labels of one vocabulary; probabilities if a threshold was set
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
        pa.field("error", pa.string(), nullable=False),  # see `to_error`; empty for a readable image
        pa.field("model", pa.string(), nullable=False),  # hash of the checkpoint's manifest
        pa.field("vocabulary", pa.string(), nullable=False),  # hash of the label list
    ]
    if config.heat_maps:
        fields.append(pa.field("heat_maps", pa.list_(pa.binary()), nullable=False))  # one PNG per label
    if config.embeddings:
        fields.append(pa.field("embedding", pa.list_(pa.float32(), embedding_dim)))
    return pa.schema(fields)


def to_json_lines(table: pa.Table) -> bytes:
    """Encodes a tag table as JSON lines, without heat maps."""
    columns = table.drop_columns([name for name in ("heat_maps",) if name in table.column_names])
    return "".join(_to_json_line(row) for row in columns.to_pylist()).encode()


def _to_json_line(row: dict[str, Any]) -> str:
    record = {"uri": row["uri"], "etag": row["etag"], "size": row["size"]}
    record["tags"] = to_tag_records(row["labels"], row["scores"])
    if row["error"]:
        reason, detail = split_error(row["error"])
        record |= {"error": reason, "detail": detail} if detail else {"error": reason}
    record |= {name: row[name] for name in ("model", "vocabulary", "embedding") if name in row}
    return json.dumps(record, ensure_ascii=False) + "\n"


def to_error(reason: str, detail: str) -> str:
    """Returns an image's `error` in a table: the reason, with the detail where it names a format or a size.

    `truncated`, `empty` and `unreachable` stay without detail, so that tables keep the bytes that version 0.1.0 wrote.
    """
    return f"{reason}: {detail}" if reason in _DETAILED and detail else reason


def split_error(error: str) -> tuple[str, str]:
    """Returns the reason, one of images.REASONS, and the detail of an `error` in a table."""
    reason, _, detail = error.partition(": ")
    return reason, detail


def to_tag_records(labels: Sequence[str], scores: Sequence[float]) -> list[dict[str, Any]]:
    """Returns an image's tags as JSON objects with rounded scores."""
    return [{"label": label, "score": round(score, 6)} for label, score in zip(labels, scores, strict=True)]


def is_sidecar(data: bytes) -> bool:
    """Returns whether a file has the keys of a sidecar that tag.py writes."""
    try:
        return {"uri", "tags", "model", "vocabulary"} <= json.loads(data).keys()
    except (ValueError, AttributeError):
        return False
