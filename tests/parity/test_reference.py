"""The command that checks a reference file: agrees with ours, fails on altered and broken ones."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.parity

HERE = Path(__file__).parent
REFERENCE = HERE / "sigrl_reference.npz"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(HERE.parents[1])}


_spec = importlib.util.spec_from_file_location("check_reference", HERE / "check_reference.py")
assert _spec is not None
assert _spec.loader is not None
check_reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(check_reference)


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in this process: exit status, stdout, stderr."""

    def run(file: Path, *options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["check_reference.py", str(file), *options])
        return check_reference.main(), *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def arrays() -> dict:
    with np.load(REFERENCE) as file:
        return {key: file[key] for key in file.files}


def test_every_reference_value_agrees() -> None:
    command = [sys.executable, str(HERE / "check_reference.py"), str(REFERENCE), "--strict"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parents[1], env=ENVIRONMENT, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "63 agree, 0 beyond the bound, 0 missing" in done.stdout


def test_one_group_under_another_name_is_checked(arrays: dict, tmp_path: Path, check) -> None:
    only = {key.replace("tiny/", "other/"): array for key, array in arrays.items() if key.startswith("tiny/")}
    np.savez(tmp_path / "one.npz", **only)
    status, table, _ = check(tmp_path / "one.npz", "--strict")
    assert status == 0, table
    assert "other/logits" in table


@pytest.mark.parametrize(
    ("key", "factor"),
    [
        ("tiny/logits", 1 + 1e-7),
        ("small/grad_patch", 1 + 1e-7),
        ("small/graph_embed", np.nan),
        ("loss/rank_grad", 1 + 1e-7),
        ("loss/metric_ap", 1 + 1e-5),
        ("lr/lr_values", 1 + 1e-7),
    ],
)
def test_an_altered_value_fails(arrays: dict, tmp_path: Path, check, key: str, factor: float) -> None:
    group = key.split("/")[0] + "/"
    changed = {name: array for name, array in arrays.items() if name.startswith(group)}
    np.savez(tmp_path / "altered.npz", **changed | {key: changed[key] * factor})
    status, table, _ = check(tmp_path / "altered.npz")
    assert status == 1
    assert [line.split()[-1] for line in table.splitlines() if line.startswith("FAIL")] == [key]


def test_a_key_without_counterpart_fails_only_when_strict(arrays: dict, tmp_path: Path, check) -> None:
    new = {"lr/lr_epochs": arrays["lr/lr_epochs"], "lr/unheard_of": np.zeros(3), "group/unheard_of": np.zeros(3)}
    np.savez(tmp_path / "new.npz", **new)
    assert check(tmp_path / "new.npz")[0] == 0
    status, table, _ = check(tmp_path / "new.npz", "--strict")
    assert status == 1
    assert "lr/unheard_of, group/unheard_of" in table


def test_a_file_that_is_none_is_one_clear_line(arrays: dict, tmp_path: Path, check) -> None:
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 not a zip")
    (tmp_path / "half.npz").write_bytes(REFERENCE.read_bytes()[:2000])
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "no_groups.npz", a=np.zeros(3))
    np.savez(tmp_path / "no_weights.npz", **{"tiny/patch": arrays["tiny/patch"]})
    for name in ("broken.npz", "half.npz", "array.npy", "no_groups.npz", "no_weights.npz", "absent.npz"):
        status, _, error = check(tmp_path / name)
        assert status == 1
        assert name in error
        assert len(error.splitlines()) == 1
