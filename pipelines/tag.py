"""folder of pictures -> tags.

python pipelines/tag.py --checkpoint runs/mine --images photos --out runs/tags
python pipelines/tag.py --checkpoint runs/mine --images photos --out runs/tags --vocabulary my_labels.txt --top-k 3
"""

import sys
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from sigrl_core.command_line import print_configuration, run
from sigrl_core.config import TagConfig
from sigrl_core.on_ray.tag import tag


def main(config: Annotated[TagConfig, tyro.conf.arg(name="")], workers: int = 1) -> None:
    """Tags every picture under a folder.

    Args:
        config: what is asked of which pictures.
        workers: processes that each hold the model.
    """
    print_configuration(config)
    manifest = tag(config, workers)
    errors = "".join(f", {count} {reason}" for reason, count in manifest["errors"].items())
    print(f"{manifest['rows']} rows: {manifest['tagged']} tagged{errors}")
    print(f"tags: {config.out}/tags (Parquet), {config.out}/tags.jsonl")


if __name__ == "__main__":
    run(lambda: tyro.cli(main, description=__doc__))
