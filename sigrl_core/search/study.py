"""A study: the trials of a hyperparameter search, the next trial to run, and the best one::

    OUT/trials/00003.json         configuration of trial 3, written before it starts
    OUT/trials/00003/             metrics.jsonl and tensorboard/ as train.py writes them; checkpoint/ of the best trial
    OUT/parts/00003.json          result of the trial; once it is written, the trial is never run again
    OUT/trials.parquet            one row per trial
    OUT/best.json                 the best configuration, for train.py --config
    OUT/manifest.json             number of trials and the best one; written last
    OUT/checkpoint/               checkpoint of its best epoch; the labels that the search held out are unseen

Trial n depends on the search's seed, n, and the trials that had ended when it was proposed. A search that runs one
trial at a time thus gives the same trials whether it was interrupted or not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

import numpy as np
import optuna
import pyarrow as pa
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from sigrl_core import __version__
from sigrl_core.config import RunConfig, SearchConfig
from sigrl_core.config.deprecated import FIELDS
from sigrl_core.config.json import from_dict, to_json
from sigrl_core.errors import ConfigError, StorageError
from sigrl_core.io import storage
from sigrl_core.io.checksums import with_checksum
from sigrl_core.io.parquet import to_parquet
from sigrl_core.io.resumable_job import Partition, ResumableJob, plan_partitions
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.search.space import Domain, Interval, SearchSpace, Suggest, contains_all

SCHEMA_VERSION = 1
BEST = "best.json"
TABLE = "trials.parquet"
STATES = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}

State = Literal["complete", "stopped", "failed"]

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One configuration and its result.

    Attributes:
        number: from 0, in the order of proposal.
        parameters: values of the fields that are searched and used, by dotted name.
        config: the whole configuration.
        state: None until the trial has ended; `stopped` if the scheduler stopped it early.
        reason: error message of a failed trial.
        epochs: the objective after each epoch.
        seconds: duration.
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
        """Objective of the best epoch; None for a failed trial."""
        return None if self.state == "failed" or not self.epochs else max(self.epochs)

    @property
    def best_epoch(self) -> int | None:
        return None if self.objective is None else self.epochs.index(self.objective) + 1

    def to_record(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any], where: str) -> Trial:
        values = {each.name: record[each.name] for each in dataclasses.fields(cls) if each.name in record}
        names, config = FIELDS["RunConfig"], from_dict(RunConfig, record["config"], where)
        values["parameters"] = {names.get(name, name): value for name, value in record["parameters"].items()}
        return cls(**{**values, "config": config, "epochs": tuple(record.get("epochs", ()))})


def trial_path(out: str, number: int, *names: str) -> str:
    """Returns a path in the folder of a trial."""
    return storage.join(out, "trials", f"{number:05d}", *names)


def choose_held_out_labels(vocabulary: Vocabulary, share: float) -> list[str]:
    """Chooses evenly spaced seen labels that are unseen in trials; the really unseen labels thus influence no choice.

    Raises:
        ConfigError: none or all labels would be held out.
    """
    seen = vocabulary.subset("seen").names
    count = round(share * len(seen))
    if not 0 < count < len(seen):
        raise ConfigError(
            f"held_out is {share:g}: {count} of {len(seen)} seen labels would be held out; expected at least one, "
            "and one to train on, or --objective map, which holds out none"
        )
    return [seen[int((number + 0.5) * len(seen) / count)] for number in range(count)]


def check_grace_period(config: SearchConfig, base: RunConfig) -> None:
    """Raises ConfigError if ASHA's grace period is longer than a trial."""
    epochs = base.training.epochs
    if config.scheduler == "asha" and config.grace_period > epochs:
        raise ConfigError(
            f"grace_period is {config.grace_period}, but a trial has training.epochs = {epochs}; expected grace_period "
            f"of 1 to {epochs}; lower --grace-period, raise --training.epochs, or give --scheduler none"
        )


@dataclass
class Study:
    """The trials in one output folder.

    Attributes:
        job: the folder.
        config: sampler, scheduler and objective.
        base: the configuration that trials change.
        space: the values of the fields that trials change.
        warm_start: ended trials of other studies, for the sampler.
        trials: trials of this study by number; those that have not ended are run again first.
    """

    job: ResumableJob
    config: SearchConfig
    base: RunConfig
    space: SearchSpace
    warm_start: Sequence[Trial] = ()
    trials: dict[int, Trial] = field(default_factory=dict)

    def load(self) -> None:
        """Reads the trials of earlier runs."""
        for partition in plan_partitions(self.config.trials, 1):
            proposal = self.path(partition.index) + ".json"
            result = self.job.path("parts", f"{partition.name}.json")
            where = result if self.job.is_committed(partition) else proposal
            if storage.exists(where):
                self.trials[partition.index] = Trial.from_record(storage.read_json(where), where)

    def path(self, number: int, *names: str) -> str:
        """Returns a path in a trial's folder."""
        return trial_path(self.job.out, number, *names)

    @property
    def ended(self) -> list[Trial]:
        return [trial for _, trial in sorted(self.trials.items()) if trial.state is not None]

    @property
    def best(self) -> Trial | None:
        """The trial with the highest objective; the first one of several."""
        scored = [trial for trial in self.ended if trial.objective is not None]
        return max(scored, key=lambda trial: trial.objective or 0.0, default=None)

    @property
    def starts_from_base(self) -> bool:
        """Whether trial 0 is `base` itself, which runs to its end for comparison.

        It has the values that the space fixes, and keeps all other values of `base`, also outside the space.
        """
        return self.config.sampler == "tpe" and not self.warm_start

    def pending(self) -> list[int]:
        """Returns the numbers of the trials that are still to be run."""
        return [n for n in range(self.config.trials) if n not in self.trials or self.trials[n].state is None]

    def propose(self, number: int) -> Trial:
        """Returns a trial; a new one is proposed and written first. It fails if its values do not fit together."""
        if number in self.trials:
            return self.trials[number]
        parameters = dict[str, Any]()
        choose = _base_values(self.base) if number == 0 and self.starts_from_base else self._sampler(number)

        def suggest(name: str, domain: Domain) -> Any:
            parameters[name] = choose(name, domain)
            return parameters[name]

        try:
            config, reason = self.space.sample(self.base, suggest), ""
        except ConfigError as error:
            config, reason = self.base, str(error)
        trial = Trial(number=number, parameters=parameters, config=config)
        storage.make_folder(self.job.path("trials"))
        storage.write_json(self.path(number) + ".json", trial.to_record())
        self.trials[number] = trial
        return self.finish(number, "failed", reason, (), 0.0) if reason else trial

    def _sampler(self, number: int) -> Suggest:
        """Returns the function by which Optuna chooses the values of a new trial."""
        proposal = self.optuna_study(number).ask()

        def sample(name: str, domain: Domain) -> Any:
            if isinstance(domain, Interval):
                return proposal.suggest_float(name, domain.low, domain.high, log=domain.log)
            return proposal.suggest_categorical(name, domain)

        return sample

    def finish(self, number: int, state: State, reason: str, epochs: Iterable[float], seconds: float) -> Trial:
        """Records the result of a trial."""
        trial = dataclasses.replace(
            self.trials[number], state=state, reason=reason, epochs=tuple(epochs), seconds=round(seconds, 3)
        )
        self.job.commit(Partition(number, number, number + 1), trial.to_record())
        self.trials[number] = trial
        return trial

    def optuna_study(self, number: int | None = None) -> optuna.Study:
        """Returns all ended trials as an Optuna study, for its samplers and importances.

        The first trial is left out if one of its values lies outside the space, which Optuna does not support.

        Args:
            number: number of the trial to propose next; seeds the sampler.
        """
        seed = int(np.random.default_rng([self.config.seed, number or 0]).integers(2**31))
        samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        study = optuna.create_study(direction="maximize", sampler=samplers[self.config.sampler](seed=seed))
        domains = self.space.domains(self.base)
        trials = [trial for trial in [*self.warm_start, *self.ended] if contains_all(domains, trial.parameters)]
        study.add_trials(_frozen(trial, domains) for trial in trials)
        return study

    def table(self) -> pa.Table:
        """Returns one row per trial with its parameters as columns, null for parameters that are not used."""
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
        domains = self.space.domains(self.base)
        fields += [pa.field(name, _arrow_type(domain)) for name, domain in domains.items()]
        return pa.Table.from_pylist(rows, pa.schema(fields))

    def write_results(self) -> None:
        """Writes the table, the best configuration and the manifest."""
        storage.write_bytes(self.job.path(TABLE), to_parquet(self.table()))
        if (best := self.best) is None:
            return
        storage.write_bytes(self.job.path(BEST), to_json(best.config).encode())
        manifest = {
            "kind": "search",
            "schema_version": SCHEMA_VERSION,
            "code_version": __version__,
            "trials": len(self.ended),
            "best_trial": best.number,
            "best_epoch": best.best_epoch,
            "best_objective": best.objective,
            "files": [BEST, TABLE, "checkpoint"],
        }
        self.job.write_manifest(with_checksum(manifest))


def load_warm_start(folders: Sequence[str], space: SearchSpace, base: RunConfig, objective: str) -> list[Trial]:
    """Loads the ended trials of other studies whose parameters are in this space.

    Raises:
        ConfigError: a folder is no study, or has another objective.
    """
    domains, trials = space.domains(base), list[Trial]()
    for folder in folders:
        job = ResumableJob(folder)
        try:
            plan = job.plan()
        except StorageError as error:
            raise ConfigError(f"warm_start {folder}: no search there ({error}); give the --out of tune.py") from error
        if plan.get("objective") != objective:
            raise ConfigError(f"warm_start {folder}: its objective is {plan.get('objective')!r}, here {objective!r}")
        for file in storage.list_files(job.path("parts")):
            where = job.path("parts", file.path)
            trial = Trial.from_record(storage.read_json(where), where)
            if trial.state != "failed" and contains_all(domains, trial.parameters):
                trials.append(trial)
    return trials


def _base_values(base: RunConfig) -> Suggest:
    """Returns the function that chooses the values of the base configuration."""
    return lambda name, domain: attrgetter(name)(base)


def _frozen(trial: Trial, domains: dict[str, Domain]) -> FrozenTrial:
    assert trial.state is not None
    return create_trial(
        state=STATES[trial.state],
        value=trial.objective,
        params=trial.parameters,
        distributions={name: _distribution(domains[name]) for name in trial.parameters},
        intermediate_values=dict(enumerate(trial.epochs, 1)),
    )


def _distribution(domain: Domain) -> BaseDistribution:
    if isinstance(domain, Interval):
        return FloatDistribution(domain.low, domain.high, log=domain.log)
    return CategoricalDistribution(domain)


def _arrow_type(domain: Domain) -> pa.DataType:
    return pa.float64() if isinstance(domain, Interval) else pa.array(domain).type
