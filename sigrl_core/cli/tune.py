"""Searches for the best configuration of a training on shards.

python pipelines/tune.py default --backbone.frozen-blocks 12 --training.augment none --data runs/features --out runs/try
python pipelines/tune.py quickstart --data runs/shards --out runs/mine --space.graph.kind none nearest --sampler random
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, NoReturn

import tyro

from sigrl_core.cli.common import FixedResources, parse_with_preset, plain, print_configuration, run_command
from sigrl_core.config import RunConfig, SearchConfig
from sigrl_core.errors import ConfigError
from sigrl_core.search.space import SearchSpace


@dataclass(frozen=True, kw_only=True)
class Tune:
    """Searches for the variation of a preset with the best objective on validation images.

    Attributes:
        data: shard folder to train on, of images or of features.
        out: folder of this search.
        validation: shard folder that the objective is measured on; by default a seeded split of --data.
        config: config.json of an earlier run, which replaces the preset's configuration.
        resume: refuses to start a new search; an existing one is resumed without this flag, too.
        search: how the search proceeds.
        concurrency: number of trials that run at a time; None uses the whole cluster. With 1, a search with the same
            seed gives the same trials.
        resources: the workers of each trial.
        space: the fields that the search changes, and their values.
        run: the configuration that every trial starts from.
    """

    data: str
    out: str
    validation: str | None = None
    config: str | None = None
    resume: bool = False
    search: Annotated[SearchConfig, tyro.conf.arg(name="")] = field(default_factory=SearchConfig)
    concurrency: int | None = None
    resources: Annotated[FixedResources, tyro.conf.arg(name="")] = FixedResources(num_workers=1)  # noqa: RUF009
    space: SearchSpace = field(default_factory=SearchSpace)
    run: Annotated[RunConfig, tyro.conf.arg(name="")]


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> NoReturn:
    """Runs the command and ends the process."""
    run_command("tune", lambda flags: _tune(parse_with_preset(Tune, flags, __doc__, prog)), arguments)


def _tune(command: Tune) -> None:
    from sigrl_core.io.resumable_job import PLAN
    from sigrl_core.io.storage import exists, join
    from sigrl_core.on_ray.tune import search
    from sigrl_core.report.search import describe, write_search_page

    print_configuration(command)
    if command.resume and not exists(join(command.out, PLAN)):
        raise ConfigError(f"--resume: no search in {command.out}; leave --resume away to start one")
    study = search(
        command.search,
        command.run,
        command.space,
        command.data,
        command.out,
        validation=command.validation,
        resources=plain(command.resources),
        concurrency=command.concurrency,
        finish=write_search_page,
    )
    print(describe(study))
    print(f"best: {command.out}/best.json (train.py --config), {command.out}/checkpoint, {command.out}/search.html")
