"""checkpoint x shards -> metrics and a report.

python pipelines/evaluate.py --checkpoint runs/mine --data runs/test_shards --out runs/evaluation
python pipelines/evaluate.py --checkpoint runs/mine --compare mkt_style=runs/mkt --data runs/test_shards --out runs/eval
python pipelines/evaluate.py --checkpoint runs/mine --data s3://bucket/shards --out s3://bucket/eval --workers 8 --gpus
"""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from sigrl_core.command_line import print_configuration, run
from sigrl_core.config import EvaluateConfig
from sigrl_core.on_ray.evaluate import scored_by_workers
from sigrl_core.report.evaluation import evaluate_to_report
from sigrl_core.report.headline import print_table


def main(
    config: Annotated[EvaluateConfig, tyro.conf.arg(name="")],
    workers: int | None = None,
    cpus_per_worker: float = 1.0,
    gpus: bool = False,
) -> None:
    """Measures a checkpoint beside zero-shot CLIP and other checkpoints.

    Args:
        config: what is measured, on what.
        workers: processes of the cluster that score pictures; by default this one alone, with --gpus one.
        cpus_per_worker: what each computes with.
        gpus: a GPU for each.
    """
    print_configuration(config)
    on_workers = partial(scored_by_workers, config, workers=workers or 1, cpus_per_worker=cpus_per_worker, gpus=gpus)
    print(print_table(evaluate_to_report(config, on_workers if workers or gpus else None)))
    print(f"report: {config.out}/report.html, {config.out}/metrics.json")


if __name__ == "__main__":
    run(lambda: tyro.cli(main, description=__doc__))
