"""The lease file, which keeps a second run out of a folder."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sigrl_core.errors import StorageError
from sigrl_core.io import lease
from sigrl_core.io.lease import Lease
from sigrl_core.io.resumable_job import ResumableJob

pytestmark = pytest.mark.unit

HOLD = """
import sys, time
from sigrl_core.io.resumable_job import ResumableJob
with ResumableJob(sys.argv[1]).locked({"a": 1}):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def short_expiry(monkeypatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 2.0)


def test_a_second_run_is_refused_while_the_first_runs(tmp_path: Path, short_expiry, capsys) -> None:
    where = str(tmp_path / "lease.json")
    with Lease(where):
        with pytest.raises(StorageError, match=rf"process {os.getpid()} of .* uses this folder"), Lease(where):
            pass
        assert "may still use this folder" in capsys.readouterr().err
    with Lease(where):  # released, so there is no wait
        pass
    assert capsys.readouterr().err == ""


def test_an_unchanged_lease_of_another_machine_expires(tmp_path: Path, short_expiry) -> None:
    where = tmp_path / "lease.json"
    where.write_text(json.dumps({"holder": "x", "beat": 7, "machine": "far away", "process": 1}))
    started = time.monotonic()
    with Lease(str(where)):
        assert time.monotonic() - started >= 2.0
        assert json.loads(where.read_text())["holder"] != "x"


def test_a_holder_notices_that_another_run_took_its_lease(tmp_path: Path, short_expiry) -> None:
    where = tmp_path / "lease.json"
    with Lease(str(where)) as held:
        held.check()
        where.write_text(json.dumps({"holder": "x", "beat": 1, "machine": "far away", "process": 1}))
        time.sleep(5 * lease.HEARTBEAT_SECONDS)
        with pytest.raises(StorageError, match="process 1 of far uses this folder"):
            held.check()
    assert json.loads(where.read_text())["holder"] == "x"  # and is not removed


def test_a_killed_holder_of_this_machine_causes_no_wait(tmp_path: Path, capsys) -> None:
    out = str(tmp_path / "out")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, out], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    assert Path(out, "work/lease.json").exists()
    with ResumableJob(out).locked({"a": 1}):
        assert capsys.readouterr().err == ""  # a wait prints a line
