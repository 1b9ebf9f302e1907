"""Help, unknown flags and wrong values are answered before anything heavy is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sigrl_core import __version__
from sigrl_core.cli.__main__ import VERBS
from sigrl_core.cli.__main__ import main as sigrl
from sigrl_core.cli.common import split_plugins
from sigrl_core.errors import ConfigError
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.unit

HEAVY = ["torch", "torchvision", "ray", "open_clip", "timm", "pyarrow", "numpy", "sklearn", "optuna", "boto3"]
CALLS: dict[str, tuple[list[list[str]], int]] = {
    "help": ([[verb, "--help"] for verb in VERBS] + [["train", "default", "--help"], ["tune", "default", "--help"]], 0),
    "unknown flags": (
        [[verb, *(["default"] if verb in ("train", "tune") else []), "--no-such-flag"] for verb in VERBS],
        2,
    ),
    "wrong values": (
        [
            ["train", "no_such_preset"],
            ["train", "default", "--data", "d", "--out", "o", "--training.epochs", "0"],
            ["train", "default", "--data", "d", "--out", "o", "--loss.kind", "nonsense"],
            ["train", "default", "--data", "d", "--out", "o", "--graph.kind", "nonsense"],
            ["train", "default", "--data", "d", "--out", "o", "--gpus-per-worker", "2"],
            ["train", "default", "--config", "/no/such/file", "--data", "d", "--out", "o"],
            ["preprocess", "--corpus", "nonsense", "--images", "i", "--out", "o"],
            ["preprocess", "--corpus", "folder", "--images", "i", "--out", "o", "--quality", "0"],
            ["tag", "--checkpoint", "c", "--images", "i", "--out", "o", "--num-workers", "2", "--min-workers", "3"],
            ["serve", "--checkpoint", "c", "--min-replicas", "3"],
            ["calibrate", "--plugin", "no_such_module", "--checkpoint", "c", "--data", "d"],
        ],
        1,
    ),
    "types": (
        [
            ["train", "default", "--data", "d", "--out", "o", "--training.epochs", "many"],
            ["preprocess", "--corpus", "folder", "--images", "i", "--out", "o", "--gpus-per-worker", "1"],
            ["evaluate", "--checkpoint", "c", "--data", "d", "--out", "o", "--min-workers", "1"],
            ["tune", "default", "--data", "d", "--out", "o", "--min-workers", "1"],
        ],
        2,
    ),
}

SCRIPT = """
import contextlib, io, json, sys
from sigrl_core.cli.__main__ import main
calls, heavy = json.loads(sys.argv[1])
for arguments in calls:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            main(arguments)
        except SystemExit as end:
            status = end.code
    print(json.dumps([status, text.getvalue(), [name for name in heavy if name in sys.modules]]))
"""


def test_nothing_heavy_is_imported() -> None:
    calls = [call for some, _ in CALLS.values() for call in some]
    command = [sys.executable, "-c", SCRIPT, json.dumps([calls, HEAVY])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    expected = [status for some, status in CALLS.values() for _ in some]
    for call, status, (found, text, imported) in zip(calls, expected, answers, strict=True):
        assert (found, imported) == (status, []), f"{call}: {text}"
        assert "Traceback" not in text, f"{call}: {text}"
        assert text.strip(), call
    helped = [text for call, (_, text, _) in zip(calls, answers, strict=True) if call[-1] == "--help"]
    assert all("--plugin MODULE" in text for text in helped)


@pytest.mark.parametrize("script", sorted((REPOSITORY / "pipelines").glob("*.py")), ids=lambda path: path.stem)
def test_scripts_and_verbs_are_the_same_commands(script: Path) -> None:
    assert script.stem.replace("_", "-") in VERBS
    assert f"from sigrl_core.cli.{script.stem} import main" in script.read_text()
    assert len(list((REPOSITORY / "pipelines").glob("*.py"))) == len(VERBS)


def test_the_console_command(capsys: pytest.CaptureFixture[str]) -> None:
    def answer(*arguments: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as end:
            sigrl(arguments)
        return (end.value.code, *capsys.readouterr())

    status, out, _ = answer("--help")
    assert status == 0
    for verb, line in VERBS.items():
        assert f"{verb} " in out
        assert line in out
    assert answer()[0] == 2
    assert answer("--version") == (0, f"sigrl {__version__}\n", "")
    status, out, err = answer("trian")
    assert (status, out) == (2, "")
    assert err == f"sigrl: 'trian' is not a command; the commands are {', '.join(VERBS)}\n"
    status, out, _ = answer("cache_features", "--help")
    assert (status, "usage: sigrl cache-features" in out) == (0, True)
    status, out, _ = answer("tag", "--help")
    assert (status, "usage: sigrl tag" in out) == (0, True)


def test_plugins_are_split_off() -> None:
    assert split_plugins(["--plugin", "a", "x", "--plugin=b.c", "--y"]) == (["a", "b.c"], ["x", "--y"])
    for arguments in (["--plugin"], ["--plugin="], ["--plugin", "--out"]):
        with pytest.raises(ConfigError, match="--plugin needs the name of a module"):
            split_plugins(arguments)


def test_a_plugin_is_imported_before_values_are_checked(tmp_path: Path) -> None:
    (tmp_path / "own_names.py").write_text(
        "from sigrl_core.plugins import register_graph, register_loss\n"
        "register_loss('own')(lambda *a: 0)\nregister_graph('own_ring')(lambda *a: 0)\n"
    )
    flags = ["--plugin", "own_names", "--loss.kind", "own", "--graph.kind", "own_ring", "--data", "d", "--out", "o"]
    command = [sys.executable, str(REPOSITORY / "pipelines" / "train.py"), "default", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "loss.kind = own\n" in done.stdout
    assert done.stderr.startswith(f"error: {tmp_path}/d: ")
