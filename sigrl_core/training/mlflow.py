"""Copies the metrics of a training to MLflow. Needs the extra `mlflow`.

MLflow reads credentials, the experiment's name and its time limits from the environment (MLFLOW_*).
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping, Sequence

from sigrl_core.errors import ConfigError

OUT_TAG = "sigrl.out"
_MAX_PARAMETER_LENGTH = 500
_PARAMETERS_PER_REQUEST = 100


class MlflowRun:
    """One run on a tracking server, identified by its id, so that any machine can write to it.

    Args:
        uri: address of the tracking server.
        run_id: id of the run.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        _require_mlflow()
        from mlflow import MlflowClient

        self.client, self.run_id, self._logged_epoch = MlflowClient(uri), run_id, -1

    @classmethod
    def start_or_resume(cls, uri: str, out: str, parameters: Mapping[str, str]) -> MlflowRun:
        """Resumes the run of a training folder, or starts one.

        The experiment is MLFLOW_EXPERIMENT_NAME, or `sigrl`; a tag of the run contains the folder.

        Args:
            uri: address of the tracking server.
            out: the training folder.
            parameters: the configuration as name -> value.

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
            existing = client.get_experiment_by_name(name)
            experiment = client.create_experiment(name) if existing is None else existing.experiment_id
            earlier = client.search_runs([experiment], f"tags.`{OUT_TAG}` = '{out}'")
            if earlier:
                run = cls(uri, earlier[0].info.run_id)
                client.update_run(run.run_id, status="RUNNING")
                return run
            started = client.create_run(experiment, tags={OUT_TAG: out}, run_name=out.rstrip("/").rpartition("/")[2])
            params = [Param(key, value[:_MAX_PARAMETER_LENGTH]) for key, value in parameters.items()]
            for first in range(0, len(params), _PARAMETERS_PER_REQUEST):
                client.log_batch(started.info.run_id, params=params[first : first + _PARAMETERS_PER_REQUEST])
            return cls(uri, started.info.run_id)
        except MlflowException as error:
            raise ConfigError(
                f"scale.mlflow is {uri!r}: {_first_line(error)}; give a tracking server that answers, or leave it out"
            ) from error

    def log(self, history: Sequence[Mapping[str, float]]) -> str:
        """Writes the epochs that are not on the server yet.

        Args:
            history: the metrics of every epoch so far, with its number as `epoch`.

        Returns:
            Empty, or the reason of a failure; training continues, and the next call writes these epochs too.
        """
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        now = int(1000 * time.time())
        try:
            if self._logged_epoch < 0:
                logged = self.client.get_metric_history(self.run_id, "epoch")
                self._logged_epoch = max((int(each.value) for each in logged), default=0)
            for row in history:
                epoch = int(row["epoch"])
                if epoch > self._logged_epoch:
                    metrics = [Metric(name, float(value), now, epoch) for name, value in row.items()]
                    self.client.log_batch(self.run_id, metrics=metrics)
                    self._logged_epoch = epoch
        except MlflowException as error:
            return f"mlflow: {_first_line(error)}; tried again after the next epoch, metrics.jsonl has them all"
        return ""

    def finish(self, history: Sequence[Mapping[str, float]]) -> str:
        """Writes the missing epochs and marks the run as finished; returns the same as `log`."""
        from mlflow.exceptions import MlflowException

        try:
            problem = self.log(history)
            self.client.set_terminated(self.run_id)
        except MlflowException as error:
            return f"mlflow: {_first_line(error)}"
        return problem


def _require_mlflow() -> None:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # seconds; MLflow's own seven are minutes
    if importlib.util.find_spec("mlflow") is None:
        raise ConfigError("scale.mlflow: MLflow is not installed; pip install 'sigrl-on-ray[mlflow]'")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
