"""shards -> checkpoint.

python pipelines/train.py clip_zero_shot --data runs/shards --out runs/clip_zero_shot
python pipelines/train.py quickstart --data runs/shards --out runs/mine --optim.lr 3e-5 --scale.workers 2
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from sigrl_core.command_line import preset_and_flags, print_configuration, run
from sigrl_core.config import RunConfig, ScaleConfig
from sigrl_core.model.coefficients import chosen
from sigrl_core.on_ray.session import device_of
from sigrl_core.on_ray.train import train


@dataclass(frozen=True, kw_only=True)
class Train:
    """Trains a preset on shards.

    Attributes:
        data: shard folder to train on.
        out: folder of this run.
        validation: shard folder that selects the best epoch; by default a seeded split of --data.
        config: a resolved configuration (config.json of an earlier run) in the place of the preset's.
        run: the experiment.
        scale: where it runs.
    """

    data: str
    out: str
    validation: str | None = None
    config: str | None = None
    run: Annotated[RunConfig, tyro.conf.arg(name="")]
    scale: ScaleConfig = field(default_factory=ScaleConfig)


def main() -> None:
    preset, flags = preset_and_flags(sys.argv[1:], __doc__ or "")
    command = tyro.cli(
        Train, args=flags, default=Train(data=tyro.MISSING, out=tyro.MISSING, run=preset), description=__doc__
    )
    print_configuration(command)
    how, device_type = command.run.reconstruction, device_of(command.scale.gpus)
    bf16 = command.run.training.precision == "bf16"
    print(f"coefficients = {chosen(how.implementation, how.coefficient_rank, device_type, bf16)}", flush=True)
    print(f"checkpoint: {train(command.run, command.scale, command.data, command.validation, command.out)}")


if __name__ == "__main__":
    run(main)
