"""The only package that imports Ray: adapters without mathematics."""

import sys

from sigrl_core import plugins


def _fetch_plugins() -> None:
    if "ray" in sys.modules:
        from sigrl_core.on_ray.worker_plugins import fetch

        fetch()


plugins.remote_source = _fetch_plugins
