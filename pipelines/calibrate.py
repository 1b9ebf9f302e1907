"""checkpoint x held-out labelled shards -> probabilities and thresholds, written into the checkpoint.

python pipelines/calibrate.py --checkpoint runs/mine --data runs/shards
python pipelines/calibrate.py --checkpoint runs/mine --data runs/held_out --part all --goal precision --at 0.95
"""

import sys
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from sigrl_core.command_line import print_configuration, run
from sigrl_core.config import CalibrateConfig
from sigrl_core.evaluation import calibrate


def main(config: Annotated[CalibrateConfig, tyro.conf.arg(name="")]) -> None:
    """Turns scores into probabilities and chooses from which probability each label is a tag."""
    print_configuration(config)
    calibration = calibrate(config)
    held_out = calibration.held_out
    print(
        f"{held_out['pictures']} held-out pictures: expected calibration error {100 * held_out['ece_before']:.1f} % "
        f"before, {100 * held_out['ece_after']:.1f} % after; {held_out['labels_with_their_own_curve']} labels have a "
        f"curve of their own, thresholds for {calibration.goal}"
    )
    print(f"calibrated: {config.checkpoint}; evaluate.py reports on it, tag.py --threshold calibrated uses it")


if __name__ == "__main__":
    run(lambda: tyro.cli(main, description=__doc__))
