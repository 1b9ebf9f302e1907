"""Everything that can go wrong, as one tree::

    SigrlError                    the message names the thing, where, what was found, what was expected, the next step
    ├── ConfigError               a run description that cannot be run: unknown key, wrong type, value out of range
    ├── VocabularyError           a label list that is not one: duplicates, empty names, unreadable file
    ├── CorpusError               a corpus that cannot be listed: missing folder, broken annotations, unknown label
    ├── StorageError              a path that cannot be read or written: missing, denied, disk full
    ├── ShardError                a shard folder that a later stage must not accept
    ├── CheckpointError           a checkpoint folder that must not be loaded
    ├── WeightsError              backbone weights that are not here and cannot be fetched
    └── ImageError                one picture that cannot be used; `reason` is one of images.REASONS

Commands turn a SigrlError into one line on stderr and exit status 1; anything else is a bug and keeps its traceback.
"""


class SigrlError(Exception):
    """Base of every error that is the input's fault, not the program's."""


class ConfigError(SigrlError):
    """A configuration that cannot be run."""


class PreemptedError(SigrlError):
    """Work that was asked to leave and has saved where it was."""


class VocabularyError(SigrlError):
    """A label list that cannot be used."""


class CorpusError(SigrlError):
    """A corpus that cannot be listed."""


class StorageError(SigrlError):
    """A location that cannot be read or written."""


class ShardError(SigrlError):
    """A shard folder that is incomplete, altered, or of another vocabulary."""


class CheckpointError(SigrlError):
    """A checkpoint folder that is incomplete, altered, or of another kind."""


class WeightsError(SigrlError):
    """Backbone weights that are missing."""


class NotFiniteError(ConfigError):
    """Training whose loss or gradient is no number any more.

    Args:
        step: steps done before.
        loss: of the step that was not taken.
        gradient_norm: of that step.
        uris: its pictures, on all workers.
    """

    def __init__(self, step: int, loss: float, gradient_norm: float, uris: list[str]) -> None:
        super().__init__(
            f"training: the loss of step {step} is {loss}, its gradient's norm {gradient_norm}; "
            f"pictures {', '.join(uris[:3])}{' ...' * (len(uris) > 3)}; lower optim.lr, or set optim.clip_norm"
        )
        self.step, self.loss, self.gradient_norm, self.uris = step, loss, gradient_norm, uris

    def __reduce__(self):
        return type(self), (self.step, self.loss, self.gradient_norm, self.uris)


class ImageError(SigrlError):
    """One picture that cannot be used.

    Args:
        reason: one of `images.REASONS`, the closed list that quarantine tables and tag rows use.
        detail: what the decoder said, for a person.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self):  # two-argument exceptions need it to cross process boundaries
        return type(self), (self.reason, self.detail)
