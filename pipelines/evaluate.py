"""checkpoint x shards -> metrics and a report.

python pipelines/evaluate.py --checkpoint runs/mine --data runs/test_shards --out runs/evaluation
python pipelines/evaluate.py --checkpoint runs/mine --compare mkt_style=runs/mkt --data runs/test_shards --out runs/eval
"""

import sys
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from sigrl_core.command_line import print_configuration, run
from sigrl_core.config import EvaluateConfig
from sigrl_core.report.evaluation import evaluate_to_report
from sigrl_core.report.headline import print_table


def main(config: Annotated[EvaluateConfig, tyro.conf.arg(name="")]) -> None:
    """Measures a checkpoint beside zero-shot CLIP and other checkpoints."""
    print_configuration(config)
    print(print_table(evaluate_to_report(config)))
    print(f"report: {config.out}/report.html, {config.out}/metrics.json")


if __name__ == "__main__":
    run(lambda: tyro.cli(main, description=__doc__))
