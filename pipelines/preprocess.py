"""corpus -> shards.

python pipelines/preprocess.py --corpus folder --images photos --out runs/shards
python pipelines/preprocess.py --corpus coco --images train2017 --annotations instances_train2017.json --out runs/coco
"""

import sys
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from sigrl_core.command_line import print_configuration, run
from sigrl_core.config import PreprocessConfig
from sigrl_core.on_ray.ingest import preprocess
from sigrl_core.records import ShardFolder
from sigrl_core.report.dataset import dataset_page


def main(
    config: Annotated[PreprocessConfig, tyro.conf.arg(name="")], workers: int | None = None, retry_failed: bool = False
) -> None:
    """Makes shards of a corpus of pictures.

    Args:
        config: what goes into the shards.
        workers: parts decoded at a time; as many as the cluster has CPUs by default.
        retry_failed: takes pictures again that could not be reached.
    """
    print_configuration(config)
    manifest = preprocess(config, workers, retry_failed)
    print(
        f"{manifest['rows_in']} rows in: {manifest['rows_out']} good, {manifest['quarantined']} quarantined, "
        f"{manifest['duplicates']} duplicates; {manifest['num_labels']} labels, {len(manifest['shards'])} shards"
    )
    print(f"page: {dataset_page(ShardFolder.open(config.out))}")
    print(f"shards: {config.out}")


if __name__ == "__main__":
    run(lambda: tyro.cli(main, description=__doc__))
