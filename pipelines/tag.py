"""folder or bucket of pictures -> tags; again, and what is new or changed is tagged.

python pipelines/tag.py --checkpoint runs/mine --images photos --out runs/tags
python pipelines/tag.py --checkpoint s3://models/mine --images s3://photos/2026 --out s3://tags/2026 --workers 8
python pipelines/tag.py --checkpoint runs/mine --images photos --out runs/tags --vocabulary my_labels.txt --top-k 3
"""

import sys
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from sigrl_core.command_line import print_configuration, run
from sigrl_core.config import TagConfig
from sigrl_core.on_ray.tag import Workers, dry_run, tag


def main(
    config: Annotated[TagConfig, tyro.conf.arg(name="")],
    workers: int = 1,
    min_workers: int | None = None,
    cpus_per_worker: float = 1.0,
    gpus_per_worker: float = 0.0,
    decode_tasks: int = 0,
    retry_failed: bool = False,
    price_per_hour: float | None = None,
    dry_run_only: Annotated[bool, tyro.conf.arg(name="dry-run")] = False,
) -> None:
    """Tags every key under a folder or bucket.

    Args:
        config: what is asked of which pictures.
        workers: processes that each hold the model.
        min_workers: starts with so many, and others while there is work for them; None starts all.
        cpus_per_worker: what each computes with.
        gpus_per_worker: 0.5 puts two workers on a GPU; 0 computes on CPU.
        decode_tasks: batches read and decoded ahead for each worker, by tasks on a CPU anywhere in the cluster; 0 does
            that in the worker, which is best without GPUs.
        retry_failed: tags pictures again that could not be reached.
        price_per_hour: of all machines together; the summary then says what a million pictures cost.
        dry_run_only: says what there is to do and about how long it takes, and writes nothing.
    """
    print_configuration(config)
    places = Workers(
        most=workers, least=min_workers, cpus=cpus_per_worker, gpus=gpus_per_worker, decode_tasks=decode_tasks
    )
    if dry_run_only:
        print(dry_run(config, places))
        return
    manifest = tag(config, places, retry_failed, price_per_hour)
    errors = "".join(f", {count} {reason}" for reason, count in manifest["errors"].items())
    print(f"{manifest['rows']} rows: {manifest['tagged']} tagged{errors}")
    print(f"tags: {config.out}/tags (Parquet), {config.out}/tagging.html")


if __name__ == "__main__":
    run(lambda: tyro.cli(main, description=__doc__))
