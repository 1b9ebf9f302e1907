"""MLflow holds every epoch once, whoever writes and however often it is away."""

import importlib.util
import socket
from pathlib import Path

import pytest
from mlflow import MlflowClient

from sigrl_core.errors import ConfigError
from sigrl_core.training.mlflow import MlflowRun

pytestmark = pytest.mark.unit

HISTORY = [{"epoch": epoch, "train/loss": 1 / epoch, "selection": epoch / 10} for epoch in range(1, 6)]
PARAMETERS = {f"number_{number}": "x" * number for number in range(0, 1500, 10)}


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """MLflow's own store of files, which serves one that has no server."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return f"file://{tmp_path}/mlflow"


def told(uri: str, run: MlflowRun) -> list[tuple[int, float]]:
    history = MlflowClient(uri).get_metric_history(run.run_id, "train/loss")
    return sorted((each.step, each.value) for each in history)


def test_each_epoch_once_over_restarts(uri: str) -> None:
    first = MlflowRun.start_or_resume(uri, "s3://bucket/runs/mine", PARAMETERS)
    assert first.log(HISTORY[:2]) == ""
    assert first.log(HISTORY[:3]) == ""
    again = MlflowRun.start_or_resume(uri, "s3://bucket/runs/mine", PARAMETERS)
    assert again.run_id == first.run_id
    elsewhere = MlflowRun(uri, again.run_id)  # as a worker has it
    assert elsewhere.log(HISTORY[:4]) == ""
    assert again.finish(HISTORY) == ""
    assert told(uri, again) == [(row["epoch"], row["train/loss"]) for row in HISTORY]
    run = MlflowClient(uri).get_run(again.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "mine"
    assert run.data.params == {name: value[:500] for name, value in PARAMETERS.items()}


def test_another_folder_is_another_run(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "birds")
    runs = [MlflowRun.start_or_resume(uri, out, {"seed": "0"}) for out in ("/runs/a", "/runs/b")]
    assert runs[0].run_id != runs[1].run_id
    assert "birds" in [each.name for each in MlflowClient(uri).search_experiments()]


def test_a_server_that_does_not_answer(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start it is an error; later training goes on, and what is missing is written when it answers again."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ConfigError, match=r"scale\.mlflow is 'http.*give a tracking server that answers"):
        MlflowRun.start_or_resume(nobody, "/runs/a", {})
    run = MlflowRun.start_or_resume(uri, "/runs/a", {})
    there, run.client = run.client, MlflowClient(nobody)
    assert "tried again after the next epoch" in run.log(HISTORY[:2])
    assert "mlflow: " in run.finish(HISTORY[:2])
    run.client = there
    assert run.log(HISTORY[:3]) == ""
    assert told(uri, run) == [(row["epoch"], row["train/loss"]) for row in HISTORY[:3]]


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'sigrl-on-ray\[mlflow\]'"):
        MlflowRun.start_or_resume("http://127.0.0.1:5000", "/runs/a", {})
