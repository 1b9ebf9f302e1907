"""API keys. Only hashes of the keys are stored."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass

from sigrl_core.errors import ConfigError
from sigrl_core.io import storage

_NUM_BYTES = 32
"""Random bytes of a key: enough that an unsalted hash is safe to store."""


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """One client.

    Attributes:
        name: identifies the client to the operator; never logged.
        sha256: hash of the key.
        requests_per_minute: rate limit; None uses the server's default.
    """

    name: str
    sha256: str
    requests_per_minute: int | None = None

    @classmethod
    def generate(cls, name: str, requests_per_minute: int | None = None) -> tuple[str, ApiKey]:
        """Returns a new key, which cannot be recovered later, and the record to store."""
        key = secrets.token_urlsafe(_NUM_BYTES)
        return key, cls(name=name, sha256=_sha256(key), requests_per_minute=requests_per_minute)


class ApiKeys:
    """All clients of a key file.

    The file is a JSON array of objects {name, sha256, requests_per_minute}; the last key is optional.
    """

    def __init__(self, keys: list[ApiKey]) -> None:
        self.keys = keys

    @classmethod
    def load(cls, uri: str) -> ApiKeys:
        """Reads a key file; raises ConfigError if it is malformed or empty."""
        rows = storage.read_json(uri)
        try:
            keys = [ApiKey(**row) for row in rows]
            valid = bool(keys) and all(len(bytes.fromhex(key.sha256)) == 32 for key in keys)
        except (TypeError, ValueError):
            valid, keys = False, []
        if not valid:
            raise ConfigError(
                f'{uri}: expected a JSON array of one or more {{"name", "sha256", "requests_per_minute"}}; '
                "serve.py --new-key NAME writes one"
            )
        return cls(keys)

    def find(self, key: str) -> ApiKey | None:
        """Returns the client of a key. The duration does not depend on how much of a wrong key is right."""
        digest, match = _sha256(key), None
        for each in self.keys:
            if hmac.compare_digest(digest, each.sha256):
                match = each
        return match


def add_key(uri: str, name: str, requests_per_minute: int | None = None) -> str:
    """Generates a key, adds its hash to a key file, and returns the key.

    Raises:
        ConfigError: the file has a key of that name.
    """
    keys = ApiKeys.load(uri).keys if storage.exists(uri) else []
    if any(each.name == name for each in keys):
        raise ConfigError(f"{uri}: has a key named {name!r}; remove its row, or choose another name")
    key, record = ApiKey.generate(name, requests_per_minute)
    rows = [{name: value for name, value in vars(each).items() if value is not None} for each in [*keys, record]]
    storage.write_bytes(uri, (json.dumps(rows, indent=1) + "\n").encode())
    return key


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
