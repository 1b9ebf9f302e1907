"""Shards -> the configuration that does best on them.

python pipelines/tune.py clip_zero_shot --backbone.frozen-blocks 12 --training.augment none --data runs/features \
    --out runs/search --trials 24
python pipelines/tune.py quickstart --data runs/shards --out runs/mine --space.graph.kind none nearest --sampler random
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from sigrl_core.command_line import preset_and_flags, print_configuration, run
from sigrl_core.config import RunConfig, SearchConfig
from sigrl_core.errors import ConfigError
from sigrl_core.on_ray.tune import Places, search
from sigrl_core.report.search import told, write_search_page
from sigrl_core.search_space import SearchSpace
from sigrl_core.storage import exists, join


@dataclass(frozen=True, kw_only=True)
class Tune:
    """Searches for the run of a preset that does best on validation pictures.

    Attributes:
        data: shard folder to train on, of pictures or of features.
        out: folder of this search.
        validation: shard folder that the objective is measured on; by default a seeded split of --data.
        config: a resolved configuration (config.json of an earlier run) in the place of the preset's.
        resume: refuses to start anew; the same command goes on with a search without that, too.
        search: how it searches.
        places: where trials run.
        space: what it changes, and between which values.
        run: what every trial starts from.
    """

    data: str
    out: str
    validation: str | None = None
    config: str | None = None
    resume: bool = False
    search: Annotated[SearchConfig, tyro.conf.arg(name="")] = field(default_factory=SearchConfig)
    places: Annotated[Places, tyro.conf.arg(name="")] = field(default_factory=Places)
    space: SearchSpace = field(default_factory=SearchSpace)
    run: Annotated[RunConfig, tyro.conf.arg(name="")]


def main() -> None:
    preset, flags = preset_and_flags(sys.argv[1:], __doc__ or "")
    command = tyro.cli(
        Tune, args=flags, default=Tune(data=tyro.MISSING, out=tyro.MISSING, run=preset), description=__doc__
    )
    print_configuration(command)
    if command.resume and not exists(join(command.out, "plan.json")):
        raise ConfigError(f"--resume: no search in {command.out}; leave --resume away to start one")
    found = search(
        command.search,
        command.run,
        command.space,
        command.places,
        command.data,
        command.validation,
        command.out,
        write_search_page,
    )
    print(told(found))
    print(f"best: {command.out}/best.json (train.py --config), {command.out}/checkpoint, {command.out}/search.html")


if __name__ == "__main__":
    run(main)
