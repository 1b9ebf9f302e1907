"""Trials of a search: what was tried and how it went, what to try next, what was best::

    OUT/trials/00003.json         what trial 3 is, noted before it starts
    OUT/trials/00003/             metrics.jsonl and tensorboard/ as train.py writes them; checkpoint/ of the best trial
    OUT/parts/00003.json          how it ended: from when it is written, the trial is never run again
    OUT/trials.parquet            a row a trial
    OUT/best.json                 the best configuration, for train.py --config
    OUT/checkpoint/               its best epoch, with the labels that the search held out unseen

What is proposed as trial n follows from the search's seed, n, and the trials that had ended by then, so that a search
that runs one trial at a time is the same whether it was interrupted or not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import optuna
import pyarrow as pa
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from sigrl_core import storage
from sigrl_core.config import RunConfig, SearchConfig
from sigrl_core.config_json import from_dict, to_json
from sigrl_core.errors import ConfigError, StorageError
from sigrl_core.parts import Job, Part, plan_parts
from sigrl_core.records import to_parquet
from sigrl_core.search_space import Between, SearchSpace, Where, holds
from sigrl_core.vocabulary import Vocabulary

BEST = "best.json"
TABLE = "trials.parquet"
STATES = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}

State = Literal["complete", "stopped", "failed"]

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One configuration and how it went.

    Attributes:
        number: from 0, in the order of proposal.
        parameters: dotted field -> value of what was searched and is used.
        config: the whole configuration.
        state: None while it has not ended; `stopped` where the scheduler saw that others are better.
        reason: why it failed.
        epochs: the objective after each epoch.
        seconds: how long it took.
    """

    number: int
    parameters: dict[str, Any]
    config: RunConfig
    state: State | None = None
    reason: str = ""
    epochs: tuple[float, ...] = ()
    seconds: float = 0.0

    @property
    def objective(self) -> float | None:
        """Of its best epoch; None where it failed."""
        return None if self.state == "failed" or not self.epochs else max(self.epochs)

    @property
    def best_epoch(self) -> int | None:
        return None if self.objective is None else self.epochs.index(self.objective) + 1

    def to_record(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any], where: str) -> Trial:
        known = {each.name: record[each.name] for each in dataclasses.fields(cls) if each.name in record}
        config = from_dict(RunConfig, record["config"], where)
        return cls(**{**known, "config": config, "epochs": tuple(record.get("epochs", ()))})


def trial_path(out: str, number: int, *names: str) -> str:
    """In the folder of a trial of a search."""
    return storage.join(out, "trials", f"{number:05d}", *names)


def held_out_labels(vocabulary: Vocabulary, share: float) -> list[str]:
    """Seen labels, evenly spread, that trials take for unseen, so that nothing is chosen by those that really are.

    Raises:
        ConfigError: none or all would be held out.
    """
    seen = vocabulary.subset("seen").names
    count = round(share * len(seen))
    if not 0 < count < len(seen):
        raise ConfigError(
            f"held_out is {share:g}: {count} of {len(seen)} seen labels would be held out; expected at least one, "
            "and one to train on, or --objective map, which holds out none"
        )
    return [seen[int((number + 0.5) * len(seen) / count)] for number in range(count)]


@dataclass
class Search:
    """A folder of trials.

    Attributes:
        job: the folder.
        config: how it searches.
        base: the run that every trial changes.
        space: what it changes.
        earlier: ended trials of other searches to learn from.
        trials: of this one, by number; those that have not ended first run again.
    """

    job: Job
    config: SearchConfig
    base: RunConfig
    space: SearchSpace
    earlier: Sequence[Trial] = ()
    trials: dict[int, Trial] = field(default_factory=dict)

    def load(self) -> None:
        """Reads what was tried before."""
        for part in plan_parts(self.config.trials, 1):
            noted = self.path(part.index) + ".json"
            where = self.job.path("parts", f"{part.name}.json") if self.job.committed(part) else noted
            if storage.exists(where):
                self.trials[part.index] = Trial.from_record(storage.read_json(where), where)

    def path(self, number: int, *names: str) -> str:
        """In a trial's folder."""
        return trial_path(self.job.out, number, *names)

    @property
    def ended(self) -> list[Trial]:
        return [trial for _, trial in sorted(self.trials.items()) if trial.state is not None]

    @property
    def best(self) -> Trial | None:
        """The first of those with the highest objective."""
        scored = [trial for trial in self.ended if trial.objective is not None]
        return max(scored, key=lambda trial: trial.objective or 0.0, default=None)

    @property
    def starts_from_base(self) -> bool:
        """Whether the first trial is `base` itself, run to its end: what others are compared with."""
        return self.config.sampler == "tpe" and not self.earlier

    def undone(self) -> list[int]:
        """Numbers of the trials still to be run."""
        return [n for n in range(self.config.trials) if n not in self.trials or self.trials[n].state is None]

    def proposed(self, number: int) -> Trial:
        """The trial of that number, proposed and noted where it was not before; one whose values do not go together
        has failed."""
        if number in self.trials:
            return self.trials[number]
        study = self.study(number)
        if number == 0 and self.starts_from_base:
            study.enqueue_trial(self.space.of(self.base))
        asked = study.ask()

        def draw(name: str, where: Where) -> Any:
            if isinstance(where, Between):
                return asked.suggest_float(name, where.low, where.high, log=where.log)
            return asked.suggest_categorical(name, where)

        try:
            config, reason = self.space.drawn(self.base, draw), ""
        except ConfigError as error:
            config, reason = self.base, str(error)
        trial = Trial(number=number, parameters=dict(asked.params), config=config)
        storage.make_folder(self.job.path("trials"))
        storage.write_json(self.path(number) + ".json", trial.to_record())
        self.trials[number] = trial
        return self.end(number, "failed", reason, (), 0.0) if reason else trial

    def end(self, number: int, state: State, reason: str, epochs: Iterable[float], seconds: float) -> Trial:
        """Records how a trial went, once."""
        trial = dataclasses.replace(
            self.trials[number], state=state, reason=reason, epochs=tuple(epochs), seconds=round(seconds, 3)
        )
        self.job.commit(Part(number, number, number + 1), trial.to_record())
        self.trials[number] = trial
        return trial

    def study(self, number: int | None = None) -> optuna.Study:
        """All that is known, as Optuna's samplers and importances take it.

        Args:
            number: of the trial that is asked for next.
        """
        seed = int(np.random.default_rng([self.config.seed, number or 0]).integers(2**31))
        samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        study = optuna.create_study(direction="maximize", sampler=samplers[self.config.sampler](seed=seed))
        searched = self.space.searched(self.base)
        study.add_trials(_frozen(trial, searched) for trial in [*self.earlier, *self.ended])
        return study

    def table(self) -> pa.Table:
        """A row a trial, its parameters as columns; empty where a parameter was not used."""
        rows = [
            {
                "trial": trial.number,
                "state": trial.state,
                "reason": trial.reason,
                "objective": trial.objective,
                "epochs": len(trial.epochs),
                "best_epoch": trial.best_epoch,
                "seconds": trial.seconds,
                "by_epoch": list(trial.epochs),
                **trial.parameters,
            }
            for trial in self.ended
        ]
        fields = [
            pa.field("trial", pa.int64(), nullable=False),
            pa.field("state", pa.string(), nullable=False),
            pa.field("reason", pa.string(), nullable=False),
            pa.field("objective", pa.float64()),
            pa.field("epochs", pa.int64(), nullable=False),
            pa.field("best_epoch", pa.int64()),
            pa.field("seconds", pa.float64(), nullable=False),
            pa.field("by_epoch", pa.list_(pa.float64()), nullable=False),
        ]
        searched = self.space.searched(self.base)
        fields += [pa.field(name, _arrow_type(where)) for name, where in searched.items()]
        return pa.Table.from_pylist(rows, pa.schema(fields))

    def write_results(self) -> None:
        """Writes the table and, last, the best configuration."""
        storage.write_bytes(self.job.path(TABLE), to_parquet(self.table()))
        if (best := self.best) is not None:
            storage.write_bytes(self.job.path(BEST), to_json(best.config).encode())


def earlier_trials(folders: Sequence[str], space: SearchSpace, base: RunConfig, objective: str) -> list[Trial]:
    """Ended trials of other searches whose parameters this space has too.

    Raises:
        ConfigError: no search there, or one with another objective.
    """
    searched, found = space.searched(base), list[Trial]()
    for folder in folders:
        job = Job(folder, BEST)
        try:
            plan = job.plan()
        except StorageError as error:
            raise ConfigError(f"warm_start {folder}: no search there ({error}); give the --out of tune.py") from error
        if plan.get("objective") != objective:
            raise ConfigError(f"warm_start {folder}: its objective is {plan.get('objective')!r}, here {objective!r}")
        for file in storage.list_files(job.path("parts")):
            where = job.path("parts", file.path)
            trial = Trial.from_record(storage.read_json(where), where)
            inside = (name in searched and holds(searched[name], value) for name, value in trial.parameters.items())
            if trial.state != "failed" and all(inside):
                found.append(trial)
    return found


def _frozen(trial: Trial, searched: dict[str, Where]) -> FrozenTrial:
    """As Optuna keeps it."""
    assert trial.state is not None
    return create_trial(
        state=STATES[trial.state],
        value=trial.objective,
        params=trial.parameters,
        distributions={name: _distribution(searched[name]) for name in trial.parameters},
        intermediate_values=dict(enumerate(trial.epochs, 1)),
    )


def _distribution(where: Where) -> BaseDistribution:
    if isinstance(where, Between):
        return FloatDistribution(where.low, where.high, log=where.log)
    return CategoricalDistribution(where)


def _arrow_type(where: Where) -> pa.DataType:
    return pa.float64() if isinstance(where, Between) else pa.array(where).type
