"""Imports open_clip without two packages that it imports and that this code does not use.

torchvision.ops imports torch._dynamo, the front end of torch.compile, for one function; open_clip imports timm for
towers that are no plain ViT. Together they take three quarters of the import time of open_clip, in every process that
loads a model.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_DYNAMO = ("torch._dynamo", "torch._dynamo.utils")


class _Deferred(ModuleType):
    """Stands in for a module, which is imported when an attribute is read."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # read by the import system
            raise AttributeError(name)
        _remove(_DYNAMO)
        return getattr(importlib.import_module(self.__name__), name)


def _is_compile_supported(device_type: str) -> bool:
    return importlib.import_module("torch._dynamo.utils").is_compile_supported(device_type)


def _remove(names: tuple[str, ...]) -> None:
    for name in names:
        if isinstance(sys.modules.get(name), _Deferred):
            del sys.modules[name]


@contextmanager
def lean_import() -> Iterator[None]:
    """In the body, importing open_clip imports neither torch._dynamo nor timm. Both can be imported afterwards."""
    no_timm = "timm" not in sys.modules
    if no_timm:
        sys.modules["timm"] = None  # type: ignore[assignment]  # an import of it raises ImportError
    if not any(name in sys.modules for name in _DYNAMO):
        for name in _DYNAMO:
            sys.modules[name] = _Deferred(name)
        sys.modules["torch._dynamo.utils"].is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    try:
        yield
    finally:
        _remove(_DYNAMO)
        if no_timm:
            del sys.modules["timm"]
