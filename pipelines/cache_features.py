"""shards -> features of a frozen backbone, to train heads on many times faster.

python pipelines/cache_features.py --checkpoint runs/mine --data runs/shards --out runs/features
python pipelines/cache_features.py --backbone.frozen-blocks 12 --data runs/shards --out runs/features
python pipelines/train.py clip_zero_shot --backbone.frozen-blocks 12 --training.augment none --data runs/features \\
    --out runs/head
"""

import sys
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from sigrl_core.command_line import print_configuration, run
from sigrl_core.config import CacheFeaturesConfig
from sigrl_core.on_ray.cache_features import cache_features


def main(
    config: Annotated[CacheFeaturesConfig, tyro.conf.arg(name="")],
    workers: int | None = None,
    cpus_per_worker: float = 1.0,
    gpus: bool = False,
) -> None:
    """Computes what the frozen blocks give for every picture of a shard folder, once.

    Args:
        config: whose frozen blocks, which pictures.
        workers: processes that each hold the backbone; by default one for every CPU of the cluster, with --gpus one.
        cpus_per_worker: what each decodes with, and without --gpus computes with.
        gpus: a GPU for each.
    """
    print_configuration(config)
    manifest = cache_features(config, workers, cpus_per_worker, gpus)
    shape = manifest["features"]
    print(f"{manifest['rows_out']} rows of {shape['tokens']} x {shape['width']} numbers, 16 bits each")
    print(f"features: {config.out}; train.py --data {config.out} --training.augment none")


if __name__ == "__main__":
    run(lambda: tyro.cli(main, description=__doc__))
