"""Tags the images of a folder or bucket; a second run tags what is new or changed.

python pipelines/tag.py --checkpoint runs/mine --images photos --out runs/tags
python pipelines/tag.py --checkpoint s3://models/mine --images s3://photos/2026 --out s3://tags/2026 --num-workers 8
python pipelines/tag.py --checkpoint runs/mine --images photos --out runs/tags --vocabulary my_labels.txt --top-k 3
"""

from collections.abc import Sequence
from typing import Annotated, NoReturn

import tyro

from sigrl_core.cli.common import parse, print_configuration, run_command
from sigrl_core.config import Resources, TagConfig


def _tag(
    config: Annotated[TagConfig, tyro.conf.arg(name="")],
    resources: Annotated[Resources, tyro.conf.arg(name="")] = Resources(num_workers=1),  # noqa: B008
    decode_tasks: int = 0,
    retry_failed: bool = False,
    price_per_hour: float | None = None,
    dry_run: bool = False,
) -> None:
    """Tags every key under a folder or bucket.

    Args:
        config: the images, the checkpoint and the labels.
        resources: the workers, each of which holds the model.
        decode_tasks: number of batches that are read and decoded ahead for each worker, by Ray tasks with one CPU
            each. 0 decodes in the worker, which is best without GPUs.
        retry_failed: tags images again that were unreachable.
        price_per_hour: price of all machines together; the summary then shows the cost of a million images.
        dry_run: prints how many images there are to tag and an estimate of time and cost; writes nothing.
    """
    from sigrl_core.on_ray import tag

    print_configuration(config, resources)
    if dry_run:
        print(tag.dry_run(config, resources, price_per_hour))
        return
    manifest = tag.tag(
        config, resources, decode_tasks=decode_tasks, retry_failed=retry_failed, price_per_hour=price_per_hour
    )
    errors = "".join(f", {count} {reason}" for reason, count in manifest["errors"].items())
    print(f"{manifest['rows']} rows: {manifest['tagged']} tagged{errors}")
    print(f"tags: {config.out}/tags (Parquet), {config.out}/tagging.html")


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> NoReturn:
    """Runs the command and ends the process."""
    run_command("tag", lambda flags: parse(_tag, flags, __doc__, prog), arguments)
