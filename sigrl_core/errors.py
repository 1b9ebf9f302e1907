"""The exceptions of the project::

    SigrlError                    base class; the message says what is wrong, where, what was expected, and what to do
    ├── ConfigError               invalid configuration: unknown key, wrong type, value out of range
    │   └── NotFiniteError        training whose loss or gradient is not finite
    ├── PreemptedError            training that was saved and stopped on request
    ├── VocabularyError           invalid label list: duplicates, empty names, unreadable file
    ├── CorpusError               corpus that cannot be listed: missing folder, broken annotations, unknown label
    ├── StorageError              path that cannot be read or written: missing, denied, disk full
    ├── ShardError                shard folder that is incomplete, altered, or does not fit the command
    ├── CheckpointError           checkpoint folder that is incomplete, altered, or does not fit the command
    ├── WeightsError              backbone weights that are missing and cannot be downloaded
    └── ImageError                image that cannot be used; `reason` is one of images.REASONS

Commands turn a SigrlError into one line on stderr and exit status 1. Any other exception is a bug and keeps its
traceback.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator


class SigrlError(Exception):
    """Base class of errors whose cause is the input or the environment, not the program."""


class ConfigError(SigrlError):
    """A configuration that cannot be run."""


class PreemptedError(SigrlError):
    """A training that was requested to stop and has saved its state."""


class VocabularyError(SigrlError):
    """A label list that cannot be used."""


class CorpusError(SigrlError):
    """A corpus that cannot be listed."""


class StorageError(SigrlError):
    """A location that cannot be read or written."""


class ShardError(SigrlError):
    """A shard folder that is incomplete, altered, or has another vocabulary."""


class CheckpointError(SigrlError):
    """A checkpoint folder that is incomplete, altered, or of another kind."""


class WeightsError(SigrlError):
    """Backbone weights that are missing."""


class NotFiniteError(ConfigError):
    """A training whose loss or gradient is not finite.

    Args:
        step: number of the step, which was not applied to the weights.
        loss: loss of the step.
        gradient_norm: norm of its gradient.
        uris: its images, of all workers.
    """

    def __init__(self, step: int, loss: float, gradient_norm: float, uris: list[str]) -> None:
        super().__init__(
            f"training: the loss of step {step} is {loss}, its gradient's norm {gradient_norm}; "
            f"images {', '.join(uris[:3])}{' ...' * (len(uris) > 3)}; lower optim.lr, or set optim.clip_norm"
        )
        self.step, self.loss, self.gradient_norm, self.uris = step, loss, gradient_norm, uris

    def __reduce__(self):
        return type(self), (self.step, self.loss, self.gradient_norm, self.uris)


class ImageError(SigrlError):
    """One image that cannot be used.

    Args:
        reason: one of `images.REASONS`, the closed list that quarantine tables and tag rows use.
        detail: message of the decoder.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self):  # pickle needs it for exceptions with two arguments
        return type(self), (self.reason, self.detail)


def explain(error: BaseException) -> str | None:
    """Returns the message, one line, of an error whose cause is the input or the machine; None for a bug."""
    for cause in causes_of(error):
        if isinstance(cause, SigrlError):
            return " ".join(str(cause).split())
    for cause in causes_of(error):
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f"{cause.filename}: " if cause.filename else ""
            return f"{where}disk full; free some space and run the same command again"
    return None


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and its causes; libraries that send errors between processes keep the original in `cause`."""
    waiting, seen = [error], set()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        original = getattr(current, "cause", None)
        if isinstance(original, BaseException):  # the wrapper has the type of the original and a traceback as its text
            waiting.insert(0, original)
        else:
            yield current
        waiting.extend(cause for cause in (current.__cause__, current.__context__) if cause is not None)
