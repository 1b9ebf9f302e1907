"""Progress: lines in a file or a log, a bar on a terminal."""

import os
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from sigrl_core.io import progress
from sigrl_core.io.progress import progress_line

pytestmark = pytest.mark.unit

PROGRAM = """
from sigrl_core.io.progress import progress_line
with progress_line("train", 40, done=10, unit="steps") as advance:
    for step in range(3):
        advance(10, f"loss {step}.5")
print("done")
"""


def run(stderr: int) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=stderr,
        cwd=Path(__file__).parents[2],
        check=True,
        timeout=60,
    )


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_lines_in_a_log() -> None:
    finished = run(subprocess.PIPE)
    assert finished.stdout == b"done\n"
    text = finished.stderr.decode()
    assert text.isascii()
    assert "\r" not in text
    assert re.fullmatch(
        r"train: 10 of 40 steps were done before\n"
        r"train: 20 of 40 steps, [\d.]+ steps/s, loss 0\.5, 0 s left\n"
        r"train: 40 of 40 steps, [\d.]+ steps/s, loss 2\.5\n",
        text,
    )


def test_a_bar_on_a_terminal() -> None:
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    try:
        finished = run(theirs)
        os.set_blocking(ours, False)
        shown = os.read(ours, 100_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert finished.stdout == b"done\n"
    states = [state for state in re.split(r"[\r\n]+", shown) if state.strip()]
    assert len(states) >= 2
    assert states[0].startswith("train:  25%|")
    assert " 10/40 " in states[0]
    assert states[-1].startswith("train: 100%|")
    assert " 40/40 " in states[-1]
    assert "steps" in states[-1]
    assert "loss 2.5" in states[-1]
    assert "of 40" not in shown
    assert max(map(len, states)) <= 80


def test_lines_are_rate_limited(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with progress_line("draw", 1000) as advance:
        for _ in range(1000):
            advance(1)
    printed = lines(capsys)
    assert len(printed) == 2
    assert printed[0].startswith("draw: 1 of 1000 rows, ")
    assert printed[1].startswith("draw: 1000 of 1000 rows, ")
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress_line("draw", 10) as advance:
        for _ in range(10):
            advance(1)
    assert len(lines(capsys)) == 10


def test_rates_exclude_earlier_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 102.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress_line("tag", 5000, done=1000) as advance:
        advance(50)
    assert lines(capsys) == [
        "tag: 1000 of 5000 rows were done before",
        "tag: 1050 of 5000 rows, 25.0 rows/s, 2 min 38 s left",
    ]


def test_no_work_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_line("tag", 0):
        pass
    assert lines(capsys) == []


def test_an_error_inside_is_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with progress_line("tag", 3) as advance:
            advance(1)
            raise KeyError("x")

    with pytest.raises(KeyError):
        work()
    assert len(lines(capsys)) == 1
