"""Measures a checkpoint on shards and writes a report.

python pipelines/evaluate.py --checkpoint runs/mine --data runs/test_shards --out runs/evaluation
python pipelines/evaluate.py --checkpoint runs/mine --compare mkt_style=runs/mkt --data runs/test_shards --out runs/eval
python pipelines/evaluate.py --checkpoint runs/mine --data s3://b/shards --out s3://b/eval --num-workers 8
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, NoReturn

import tyro

from sigrl_core.cli.common import FixedResources, parse, plain, print_configuration, run_command
from sigrl_core.config import EvaluateConfig


def _evaluate(
    config: Annotated[EvaluateConfig, tyro.conf.arg(name="")],
    resources: Annotated[FixedResources, tyro.conf.arg(name="")],
) -> None:
    """Measures a checkpoint beside zero-shot CLIP and further checkpoints.

    Args:
        config: the checkpoints and the images.
        resources: the workers that score images; without any of these flags, this process scores them.
    """
    from sigrl_core.on_ray.evaluate import score_on_workers
    from sigrl_core.report.evaluation import evaluate_to_report
    from sigrl_core.report.headline import print_table

    print_configuration(config, resources)
    score = None if resources == FixedResources() else partial(score_on_workers, config, resources=plain(resources))
    print(print_table(evaluate_to_report(config, score)))
    print(f"report: {config.out}/report.html, {config.out}/metrics.json")


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> NoReturn:
    """Runs the command and ends the process."""
    run_command("evaluate", lambda flags: parse(_evaluate, flags, __doc__, prog), arguments)
