"""Trains a model on shards and writes a checkpoint.

python pipelines/train.py default --data runs/shards --out runs/mine
python pipelines/train.py quickstart --data runs/shards --out runs/mine --optim.lr 3e-5 --num-workers 4
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, NoReturn

import tyro

from sigrl_core.cli.common import parse_with_preset, print_configuration, run_command
from sigrl_core.config import Resources, RunConfig, ScaleConfig


@dataclass(frozen=True, kw_only=True)
class Train:
    """Trains a preset on shards.

    Attributes:
        data: shard folder to train on.
        out: folder of this run.
        validation: shard folder that selects the best epoch; by default a seeded split of --data.
        config: config.json of an earlier run, which replaces the preset's configuration.
        run: the experiment.
        resources: the data-parallel workers.
        scale: how the training runs on them.
    """

    data: str
    out: str
    validation: str | None = None
    config: str | None = None
    run: Annotated[RunConfig, tyro.conf.arg(name="")]
    resources: Annotated[Resources, tyro.conf.arg(name="")] = Resources(num_workers=2)  # noqa: RUF009
    scale: ScaleConfig = field(default_factory=ScaleConfig)


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> NoReturn:
    """Runs the command and ends the process."""
    run_command("train", lambda flags: _train(parse_with_preset(Train, flags, __doc__, prog)), arguments)


def _train(command: Train) -> None:
    from sigrl_core.model.coefficients import resolve_implementation
    from sigrl_core.on_ray.session import device_of
    from sigrl_core.on_ray.train import train

    print_configuration(command)
    section, device_type = command.run.reconstruction, device_of(command.resources.gpus_per_worker)
    bf16 = command.run.training.precision == "bf16"
    implementation = resolve_implementation(section.implementation, section.coefficient_rank, device_type, bf16)
    print(f"coefficients = {implementation}", flush=True)
    checkpoint = train(
        command.run,
        command.data,
        command.out,
        validation=command.validation,
        resources=command.resources,
        scale=command.scale,
    )
    print(f"checkpoint: {checkpoint}")
