"""Runs the whole chain on the built-in corpus: corpus, shards, training, checkpoint, evaluation, tags, report.

python pipelines/quickstart.py --out runs/quickstart

Draws images, trains a small CLIP on captions, SigRL and the MKT-style baseline on labels, measures both beside
zero-shot CLIP, and tags the test images. Finished stages are skipped: run the same command again to resume.
"""

from collections.abc import Sequence
from typing import Annotated, NoReturn

import tyro

from sigrl_core.cli.common import parse, print_configuration, run_command
from sigrl_core.config import QuickstartConfig, Resources


def _quickstart(
    config: Annotated[QuickstartConfig, tyro.conf.arg(name="")],
    resources: Annotated[Resources, tyro.conf.arg(name="")] = Resources(num_workers=1),  # noqa: B008
) -> None:
    """Runs the whole chain on the built-in corpus.

    Args:
        config: the size of the corpus.
        resources: the training workers.
    """
    from sigrl_core.on_ray.quickstart import quickstart
    from sigrl_core.report.headline import print_table

    print_configuration(config, resources)
    print(print_table(quickstart(config, resources)))
    print(f"report: {config.out}/report.html, {config.out}/metrics.json; tags: {config.out}/tags/tagging.html")


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> NoReturn:
    """Runs the command and ends the process."""
    run_command("quickstart", lambda flags: parse(_quickstart, flags, __doc__, prog), arguments)
