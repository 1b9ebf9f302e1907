"""The notebook of docs/ runs from its first to its last cell, and is committed without outputs."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import REPOSITORY
from tests.processes import apart_from_ray

pytestmark = pytest.mark.e2e

NOTEBOOK = REPOSITORY / "docs" / "tutorial.ipynb"


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    environment = {**apart_from_ray(), "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path), "RAY_TMPDIR": "/tmp"}
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute(env=environment)
    results = {cell["id"]: cell.outputs[-1].get("data") for cell in code if cell.outputs}
    shown = {name: data["text/plain"] for name, data in results.items() if data}
    assert len(shown) >= 5
    (folder,) = tmp_path.glob("sigrl-*")
    (row,) = [json.loads(line) for line in (folder / "squared" / "metrics.jsonl").read_text().splitlines()]
    assert 0 < row["train/squared"] < 1
    assert "grass" in shown["cell-10"]
    assert "sigrl_independent" in shown["cell-12"]
