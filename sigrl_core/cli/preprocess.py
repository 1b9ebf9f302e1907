"""Turns a corpus of images into shards.

python pipelines/preprocess.py --images photos --out runs/shards
python pipelines/preprocess.py --corpus coco --images train2017 --annotations instances_train2017.json --out runs/coco
"""

from collections.abc import Sequence
from typing import Annotated, NoReturn

import tyro

from sigrl_core.cli.common import CpuResources, parse, plain, print_configuration, run_command
from sigrl_core.config import PreprocessConfig
from sigrl_core.config.checks import require_registered
from sigrl_core.config.stages import AUTO_CORPUS
from sigrl_core.plugins import CORPORA


def _preprocess(
    config: Annotated[PreprocessConfig, tyro.conf.arg(name="")],
    resources: Annotated[CpuResources, tyro.conf.arg(name="")],
    retry_failed: bool = False,
) -> None:
    """Turns a corpus of images into shards.

    Args:
        config: what goes into the shards.
        resources: the workers that decode images.
        retry_failed: fetches unreachable images again.
    """
    require_registered(CORPORA, config.corpus, AUTO_CORPUS)
    from sigrl_core.data.shards import ShardFolder
    from sigrl_core.on_ray.preprocess import preprocess
    from sigrl_core.report.dataset import dataset_page

    print_configuration(config, resources)
    manifest = preprocess(config, plain(resources), retry_failed=retry_failed)
    print(
        f"{manifest['rows_in']} rows in: {manifest['rows_out']} good, {manifest['quarantined']} quarantined, "
        f"{manifest['duplicates']} duplicates; {manifest['num_labels']} labels, {len(manifest['shards'])} shards"
    )
    print(f"page: {dataset_page(ShardFolder.open(config.out))}")
    print(f"shards: {config.out}")


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> NoReturn:
    """Runs the command and ends the process."""
    run_command("preprocess", lambda flags: parse(_preprocess, flags, __doc__, prog), arguments)
