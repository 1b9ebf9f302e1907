"""The coefficient operator needs no more memory for 1,024 labels than for 64."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]


def test_peak_memory_does_not_grow_with_the_labels() -> None:
    command = [sys.executable, str(ROOT / "tests/bench/bench_memory.py"), "--quick"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["memory_growth_c64_c1024"] < 0.10, done.stdout
