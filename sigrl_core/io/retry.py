"""Repeats calls while an object store fails, and explains errors of disks and stores."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import tenacity

from sigrl_core.errors import StorageError
from sigrl_core.io import object_store

RETRY_SECONDS = 60.0
"""How long calls to a store that does not answer are repeated before the error is raised."""

_Call = TypeVar("_Call", bound=Callable[..., Any])


def is_transient(error: BaseException) -> bool:
    """Returns whether the store failed, not this one file, so that the same call may succeed later."""
    return isinstance(error, StorageError) and object_store.is_transient(error.__cause__)


def with_retries(call: _Call) -> _Call:
    """Decorates an idempotent call: it is repeated after transient errors, with growing random pauses."""
    repeated = tenacity.retry(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random_exponential(multiplier=0.25, max=5),
        stop=tenacity.stop_after_delay(RETRY_SECONDS),
        reraise=True,
    )
    return cast(_Call, repeated(call))


@contextlib.contextmanager
def explain_errors(uri: str, action: str) -> Iterator[None]:
    """Turns every OSError of the body into a StorageError that says what is wrong and what to do.

    Args:
        action: what the body does to `uri`, as in "cannot be read".
    """
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"{uri}: no such file or folder; check the path") from error
    except OSError as error:
        raise StorageError(f"{uri}: cannot be {action}: {_explain(error)}") from error


def _explain(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk full; free some space and run the same command again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "permission denied; check the rights of this user"
    if explanation := object_store.explain(error):
        return explanation
    return f"{error.strerror or error}; check the path and the connection, then run the same command again"
