"""Who may ask: keys of which only hashes are kept."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass

from sigrl_core import storage
from sigrl_core.errors import ConfigError

_BYTES = 32
"""Of a key: what so much chance makes cannot be guessed, so a plain hash of it may be kept."""


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """One client.

    Attributes:
        name: who it is, for people; never in a log.
        sha256: of the key.
        requests_per_minute: that it may make; None as the server's own.
    """

    name: str
    sha256: str
    requests_per_minute: int | None = None

    @classmethod
    def new(cls, name: str, requests_per_minute: int | None = None) -> tuple[str, ApiKey]:
        """A key, to be told once, and what to keep of it."""
        key = secrets.token_urlsafe(_BYTES)
        return key, cls(name=name, sha256=_sha256(key), requests_per_minute=requests_per_minute)


class ApiKeys:
    """All clients that a file lists.

    The file is a JSON array of objects {name, sha256, requests_per_minute}, the last one optional.
    """

    def __init__(self, keys: list[ApiKey]) -> None:
        self.keys = keys

    @classmethod
    def load(cls, uri: str) -> ApiKeys:
        """Raises ConfigError where the file is no list of keys, or lists none."""
        rows = storage.read_json(uri)
        try:
            keys = [ApiKey(**row) for row in rows]
            valid = bool(keys) and all(len(bytes.fromhex(key.sha256)) == 32 for key in keys)
        except (TypeError, ValueError):
            valid, keys = False, []
        if not valid:
            raise ConfigError(
                f'{uri}: expected a JSON array of {{"name", "sha256", "requests_per_minute"}}, one at least; '
                "serve.py --new-key NAME writes one"
            )
        return cls(keys)

    def of(self, presented: str) -> ApiKey | None:
        """Whose key it is, in a time that does not tell how close it came."""
        digest, found = _sha256(presented), None
        for key in self.keys:
            if hmac.compare_digest(digest, key.sha256):
                found = key
        return found


def add_key(uri: str, name: str, requests_per_minute: int | None = None) -> str:
    """Makes a key, adds its hash to a file, and returns the key.

    Raises:
        ConfigError: the file lists that name.
    """
    known = ApiKeys.load(uri).keys if storage.exists(uri) else []
    if any(key.name == name for key in known):
        raise ConfigError(f"{uri}: lists a key named {name!r}; take its row out, or choose another name")
    key, kept = ApiKey.new(name, requests_per_minute)
    rows = [{name: value for name, value in vars(each).items() if value is not None} for each in [*known, kept]]
    storage.write_bytes(uri, (json.dumps(rows, indent=1) + "\n").encode())
    return key


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
