"""Hashes of files, of a manifest's own content, and of inputs that a plan names."""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

from sigrl_core.errors import SigrlError


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def with_checksum(manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns the manifest with a hash of all its other keys, by which readers detect changes."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return {**content, "sha256": sha256_of(json.dumps(content, sort_keys=True).encode())}


class Pinned(NamedTuple):
    """The hash that an input had when its use was planned. Whoever loads the input later compares what it loaded.

    Attributes:
        sha256: the hash; the reader of the input defines what it covers.
        owner: what recorded the hash, for errors, such as `the plan of runs/tags`.
        other_step: the alternative to restoring the input, for errors.
    """

    sha256: str
    owner: str
    other_step: str = "choose another --out"

    def check(self, where: str, kind: str, sha256: str, error: type[SigrlError]) -> None:
        """Raises `error`, with both hashes, if what was loaded from `where` has another hash.

        Args:
            where: location of the input.
            kind: what the input is, for errors, such as `model`.
            sha256: hash of what was loaded.
        """
        if sha256 != self.sha256:
            raise error(
                f"{where}: holds {kind} {sha256[:12]}, {self.owner} has {self.sha256[:12]}; "
                f"restore the planned {kind}, or {self.other_step}"
            )
