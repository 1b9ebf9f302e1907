"""Metrics of a training in MLflow, beside those in its own folder. Needs the extra `mlflow`.

Credentials, the experiment's name and how long to wait are read from the environment, as MLflow has them (MLFLOW_*).
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping, Sequence

from sigrl_core.errors import ConfigError

OUT_TAG = "sigrl.out"
_LONGEST_PARAMETER = 500
_PARAMETERS_AT_A_TIME = 100


class MlflowRun:
    """One run of a tracking server, named by its id, so that it can be written to from any machine.

    Args:
        uri: of the tracking server.
        run_id: of the run.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        _require_mlflow()
        from mlflow import MlflowClient

        self.client, self.run_id, self._logged = MlflowClient(uri), run_id, -1

    @classmethod
    def begin(cls, uri: str, out: str, parameters: Mapping[str, str]) -> MlflowRun:
        """Goes on with the run of a training folder, or starts one.

        The experiment is MLFLOW_EXPERIMENT_NAME, or `sigrl`; the run is found again by a tag that holds the folder.

        Args:
            uri: of the tracking server.
            out: the training folder.
            parameters: the configuration, flat.

        Raises:
            ConfigError: the package is not installed, or the server cannot be reached or refuses.
        """
        _require_mlflow()
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "sigrl")
        try:
            client = MlflowClient(uri)
            found = client.get_experiment_by_name(name)
            experiment = client.create_experiment(name) if found is None else found.experiment_id
            earlier = client.search_runs([experiment], f"tags.`{OUT_TAG}` = '{out}'")
            if earlier:
                run = cls(uri, earlier[0].info.run_id)
                client.update_run(run.run_id, status="RUNNING")
                return run
            started = client.create_run(experiment, tags={OUT_TAG: out}, run_name=out.rstrip("/").rpartition("/")[2])
            told = [Param(key, value[:_LONGEST_PARAMETER]) for key, value in parameters.items()]
            for first in range(0, len(told), _PARAMETERS_AT_A_TIME):
                client.log_batch(started.info.run_id, params=told[first : first + _PARAMETERS_AT_A_TIME])
            return cls(uri, started.info.run_id)
        except MlflowException as error:
            raise ConfigError(
                f"scale.mlflow is {uri!r}: {_first_line(error)}; give a tracking server that answers, or leave it out"
            ) from error

    def log(self, history: Sequence[Mapping[str, float]]) -> str:
        """Writes the epochs that are not there yet.

        Args:
            history: the metrics of every epoch so far, with its number as `epoch`.

        Returns:
            Empty, or why they could not be written; training goes on, and the next call writes them too.
        """
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        now = int(1000 * time.time())
        try:
            if self._logged < 0:
                there = self.client.get_metric_history(self.run_id, "epoch")
                self._logged = max((int(each.value) for each in there), default=0)
            for row in history:
                epoch = int(row["epoch"])
                if epoch > self._logged:
                    told = [Metric(name, float(value), now, epoch) for name, value in row.items()]
                    self.client.log_batch(self.run_id, metrics=told)
                    self._logged = epoch
        except MlflowException as error:
            return f"mlflow: {_first_line(error)}; tried again after the next epoch, metrics.jsonl has them all"
        return ""

    def finish(self, history: Sequence[Mapping[str, float]]) -> str:
        """Writes what is missing and says that the training has ended; returns as `log` does."""
        from mlflow.exceptions import MlflowException

        try:
            said = self.log(history)
            self.client.set_terminated(self.run_id)
        except MlflowException as error:
            return f"mlflow: {_first_line(error)}"
        return said


def _require_mlflow() -> None:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # seconds; MLflow's own seven are minutes
    if importlib.util.find_spec("mlflow") is None:
        raise ConfigError("scale.mlflow: MLflow is not installed; pip install 'sigrl-on-ray[mlflow]'")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
