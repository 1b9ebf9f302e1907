"""checkpoint -> tags over HTTP, with a page at /.

python pipelines/serve.py --checkpoint runs/mine
python pipelines/serve.py --new-key alice --api-keys keys.json
python pipelines/serve.py --checkpoint s3://models/mine --api-keys keys.json --host 0.0.0.0 --most 4 --gpus 0.5
"""

import sys
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from sigrl_core.command_line import print_configuration, run
from sigrl_core.on_ray.serve import Replicas, serve_until_stopped
from sigrl_core.serving.keys import add_key
from sigrl_core.serving.settings import ServeConfig


def main(
    config: Annotated[ServeConfig, tyro.conf.arg(name="")],
    replicas: Annotated[Replicas, tyro.conf.arg(name="")],
    host: str = "127.0.0.1",
    port: int = 8000,
    metrics_port: int | None = None,
) -> None:
    """Serves until Ctrl-C or SIGTERM.

    Args:
        config: what is served.
        replicas: where it runs.
        host: address to listen on; 0.0.0.0 is all.
        port: to listen on.
        metrics_port: where Prometheus may read what is counted, by everybody who reaches this machine; a cluster that
            is joined has its own. None counts nothing.
    """
    print_configuration(config)
    serve_until_stopped(config, replicas, host, port, metrics_port)


def new_key(new_key: str, api_keys: str, requests_per_minute: int | None = None) -> None:
    """Makes a key, adds its hash to a file, and prints the key, which is kept nowhere.

    Args:
        new_key: name of whose it is.
        api_keys: file to add it to.
        requests_per_minute: that it may make.
    """
    print(add_key(api_keys, new_key, requests_per_minute))


if __name__ == "__main__":
    chosen = new_key if "--new-key" in sys.argv else main
    run(lambda: tyro.cli(chosen, description=__doc__))
