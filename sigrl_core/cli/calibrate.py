"""Turns scores into probabilities and thresholds, by held-out labelled shards, and writes them into the checkpoint.

python pipelines/calibrate.py --checkpoint runs/mine --data runs/shards
python pipelines/calibrate.py --checkpoint runs/mine --data runs/test --split all --criterion recall --target 0.95
"""

from collections.abc import Sequence
from typing import Annotated, NoReturn

import tyro

from sigrl_core.cli.common import parse, print_configuration, run_command
from sigrl_core.config import CalibrateConfig


def _calibrate(config: Annotated[CalibrateConfig, tyro.conf.arg(name="")]) -> None:
    """Fits the curves from score to probability, and chooses the threshold of each label."""
    from sigrl_core.evaluation.calibrate import calibrate

    print_configuration(config)
    calibration = calibrate(config)
    held_out = calibration.held_out
    print(
        f"{held_out['images']} held-out images: expected calibration error {100 * held_out['ece_before']:.1f} % "
        f"before, {100 * held_out['ece_after']:.1f} % after; {held_out['labels_with_their_own_curve']} labels have a "
        f"curve of their own, thresholds for {calibration.criterion}"
    )
    print(f"calibrated: {config.checkpoint}; evaluate.py reports on it, tag.py --threshold calibrated uses it")


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> NoReturn:
    """Runs the command and ends the process."""
    run_command("calibrate", lambda flags: parse(_calibrate, flags, __doc__, prog), arguments)
