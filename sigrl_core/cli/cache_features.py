"""Turns shards into features of a frozen backbone, on which heads train many times faster.

python pipelines/cache_features.py --checkpoint runs/mine --data runs/shards --out runs/features
python pipelines/cache_features.py --backbone.frozen-blocks 12 --data runs/shards --out runs/features
python pipelines/train.py default --backbone.frozen-blocks 12 --training.augment none --data runs/features --out runs/h1
"""

from collections.abc import Sequence
from typing import Annotated, NoReturn

import tyro

from sigrl_core.cli.common import parse, print_configuration, run_command
from sigrl_core.config import CacheFeaturesConfig, Resources


def _cache_features(
    config: Annotated[CacheFeaturesConfig, tyro.conf.arg(name="")],
    resources: Annotated[Resources, tyro.conf.arg(name="")],
) -> None:
    """Computes the output of the frozen blocks for every image of a shard folder, once.

    Args:
        config: the backbone and the images.
        resources: the workers, each of which holds the backbone.
    """
    from sigrl_core.on_ray.cache_features import cache_features

    print_configuration(config, resources)
    manifest = cache_features(config, resources)
    shape = manifest["features"]
    print(f"{manifest['rows_out']} rows of {shape['tokens']} x {shape['width']} numbers, 16 bits each")
    print(f"features: {config.out}; train.py --data {config.out} --training.augment none")


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> NoReturn:
    """Runs the command and ends the process."""
    run_command("cache_features", lambda flags: parse(_cache_features, flags, __doc__, prog), arguments)
