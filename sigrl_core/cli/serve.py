"""Serves the tags of a checkpoint over HTTP, with a page at /.

python pipelines/serve.py --checkpoint runs/mine
python pipelines/serve.py --new-key alice --api-keys keys.json
python pipelines/serve.py --checkpoint s3://models/mine --api-keys keys.json --host 0.0.0.0 --max-replicas 4
"""

from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import tyro

from sigrl_core.cli.common import parse, print_configuration, run_command
from sigrl_core.config import Replicas, ServeConfig


def _serve(
    config: Annotated[ServeConfig, tyro.conf.arg(name="")],
    replicas: Annotated[Replicas, tyro.conf.arg(name="")],
    host: str = "127.0.0.1",
    port: int = 8000,
    metrics_port: int | None = None,
) -> None:
    """Serves until Ctrl-C or SIGTERM.

    Args:
        config: the checkpoints and the limits of requests.
        replicas: number and size of the server's processes.
        host: address to listen on; 0.0.0.0 is every address of this machine.
        port: TCP port to listen on.
        metrics_port: port of the Prometheus metrics, open to everyone who reaches this machine; a cluster that this
            command joins has its own. None exports no metrics.
    """
    from sigrl_core.on_ray.serve import serve_until_stopped

    print_configuration(config, replicas)
    serve_until_stopped(config, replicas, host, port, metrics_port)


def _new_key(new_key: str, api_keys: str, requests_per_minute: int | None = None) -> None:
    """Makes a key, adds its hash to a file, and prints the key, which is stored nowhere.

    Args:
        new_key: name of the key's owner.
        api_keys: file that gets the hash.
        requests_per_minute: limit of this key.
    """
    from sigrl_core.serving.keys import add_key

    print(add_key(api_keys, new_key, requests_per_minute))


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> NoReturn:
    """Runs the command and ends the process."""

    def body(flags: list[str]) -> None:
        is_new_key = any(flag.partition("=")[0] == "--new-key" for flag in flags)
        function: Any = _new_key if is_new_key else _serve
        parse(function, flags, __doc__, prog)

    run_command("serve", body, arguments)
