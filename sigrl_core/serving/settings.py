"""What a server serves and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sigrl_core.errors import ConfigError

DEFAULT_MODEL = "default"
AT_LEAST_ONE = (
    *("models_at_once", "requests_per_minute", "batch_size", "max_queued"),
    *("max_body_bytes", "max_images", "max_pixels", "max_labels"),
)


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The same in a committed YAML (`args` of the application) and as flags of serve.py."""

    checkpoint: str
    """The --out of train.py, or a checkpoint folder; local or s3://. Answers where a request names no model."""
    models: dict[str, str] = field(default_factory=dict)
    """Other checkpoints by the names that requests ask for them with; loaded when first asked for."""
    models_at_once: int = 4
    """Of these, that a replica holds; for another one, that which was asked for least recently leaves."""
    vocabularies: str | None = None
    """Folder, local or s3://, of the label lists that clients name; None keeps them beside the checkpoint."""
    api_keys: str | None = None
    """File of keys, see keys.ApiKeys; None lets everyone ask."""
    open_to_everyone: bool = False
    """Says that it is meant to be so without keys."""
    requests_per_minute: int = 600
    """Of each key, or without keys of all together, where the file of keys says nothing else."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What the model computes in."""
    batch_size: int = 32
    """Pictures that the model sees at a time, of as many requests as there are."""
    follow_seconds: float = 10.0
    """How often it looks for a new checkpoint in the same place, which then takes over between two batches."""
    max_body_bytes: int = 64_000_000
    """Of a request, all pictures together."""
    max_held_bytes: int = 1_000_000_000
    """Of all requests that a replica is at; beyond, they are turned away with 503."""
    max_images: int = 64
    """Of a request."""
    max_pixels: int = 100_000_000
    """Of a picture, by its header."""
    max_labels: int = 2000
    """Of a label list that comes with a request or is named."""
    max_vocabularies: int = 1000
    """Label lists that clients may name."""
    max_waiting: int = 256
    """Pictures that wait or are being tagged in a replica; beyond, requests are turned away with 503."""
    max_queued: int = 128
    """Requests that wait for a replica in a proxy, where turning others away costs least."""

    def __post_init__(self) -> None:
        if DEFAULT_MODEL in self.models:
            raise ConfigError(f"models: {DEFAULT_MODEL!r} is the name of --checkpoint; choose another one")
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected 1 or more")
        if self.max_waiting < self.max_images:
            raise ConfigError(
                f"max_waiting is {self.max_waiting}; expected max_images = {self.max_images} or more, so that every "
                "request can be answered"
            )
        if self.max_held_bytes < self.max_body_bytes:
            raise ConfigError(
                f"max_held_bytes is {self.max_held_bytes}; expected max_body_bytes = {self.max_body_bytes} or more"
            )
        if self.follow_seconds <= 0:
            raise ConfigError(f"follow_seconds is {self.follow_seconds!r}; expected above 0")

    @property
    def checkpoints(self) -> dict[str, str]:
        """All of them by name."""
        return {DEFAULT_MODEL: self.checkpoint, **self.models}
