"""Hashes of files, and of a manifest's own content."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def with_checksum(manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns the manifest with a hash of all its other keys, by which readers detect changes."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return {**content, "sha256": sha256_of(json.dumps(content, sort_keys=True).encode())}
