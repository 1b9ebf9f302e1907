"""Sends plug-ins of the driver to the Ray workers of its job.

`publish` stores the driver's entries in the cluster's key-value store under the job's id: functions of an importable
module by name, functions of `__main__` (a notebook, a script) by value. A worker that looks up a name which it does not
have fetches them. This covers every worker of the job, however it was started and whoever started Ray, and costs
nothing if no plug-in is registered. Serve replicas may belong to another job, so they get `dump()` as an argument.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle as ray_cloudpickle
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from sigrl_core import plugins
from sigrl_core.errors import ConfigError, SigrlError

cloudpickle: Any = ray_cloudpickle  # its names are not declared
NAMESPACE = "sigrl"
_received: bytes | None = None
"""What this process received last."""
_published: bytes | None = None
"""What this process published last."""


def dump() -> bytes | None:
    """Returns the entries that this process registered, in the format of `install`; None if there are none.

    Raises:
        ConfigError: a function cannot be sent; names it and the reason.
    """
    entries = plugins.local_entries()
    if not entries:
        return None
    for noun, functions in entries.items():
        for name, function in functions.items():
            try:
                cloudpickle.dumps(function)
            except Exception as error:
                raise ConfigError(
                    f"{noun} {name!r} of {function.__module__} cannot be sent to Ray workers "
                    f"({type(error).__name__}: {error}); move it to a module and load that with --plugin MODULE"
                ) from error
    return pickle.dumps((_folders(entries), cloudpickle.dumps(entries)))


def _folders(entries: dict[str, dict[str, Any]]) -> list[str]:
    """Returns the folders of these functions' modules, for workers that can read them."""
    modules = {function.__module__.partition(".")[0] for named in entries.values() for function in named.values()}
    files = [getattr(sys.modules.get(name), "__file__", None) for name in sorted(modules - {"__main__"})]
    paths = [Path(file).resolve() for file in files if file]
    return [str(path.parents[1] if path.name == "__init__.py" else path.parent) for path in paths]


def install(payload: bytes | None) -> None:
    """Registers what another process dumped.

    Raises:
        ConfigError: a module is not on this machine.
    """
    global _received
    if payload is None or payload in (_received, _published):
        return
    folders, entries = pickle.loads(payload)
    sys.path += [folder for folder in folders if folder not in sys.path]
    try:
        with plugins.registering("received"):
            plugins.receive(pickle.loads(entries))
    except SigrlError:
        raise
    except Exception as error:
        raise ConfigError(
            f"plug-ins cannot be loaded on machine {ray.util.get_node_ip_address()} ({type(error).__name__}: {error}); "
            "install them on every machine, or submit the job with `ray job submit --working-dir`"
        ) from error
    _received = payload


def publish() -> None:
    """Makes this driver's plug-ins available to the workers of its job, in the place of those published before."""
    global _published
    payload = dump()
    if payload is None:
        return
    current = _internal_kv_get(_key(), namespace=NAMESPACE)
    if current in (None, _published):  # workers that import a plug-in module do not replace the driver's entries
        _internal_kv_put(_key(), payload, overwrite=True, namespace=NAMESPACE)
        _published = payload


def fetch() -> None:
    """Registers what the driver of this job published, if that changed since the last call."""
    if ray.is_initialized():
        install(_internal_kv_get(_key(), namespace=NAMESPACE))


def _key() -> str:
    return f"plugins of job {ray.get_runtime_context().get_job_id()}"
