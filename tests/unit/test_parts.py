"""Parts, commit records and the lease: what makes a killed run go on, and a second one stay away."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigrl_core import parts as module
from sigrl_core.errors import StorageError
from sigrl_core.parts import Job, Lease, Part, plan_parts

pytestmark = pytest.mark.unit

HOLD = """
import sys, time
from sigrl_core.parts import Job
with Job(sys.argv[1]).claimed({"a": 1}):
    print("claimed", flush=True)
    time.sleep(60)
"""

WRITE = """
import sys, time
from sigrl_core import storage
with storage.writing(sys.argv[1]) as file:
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def short_patience(monkeypatch) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(module, "SILENT_SECONDS", 2.0)


@given(st.integers(0, 5000), st.integers(1, 700))
def test_parts_cover_every_row_once_in_order(num_rows: int, rows_per_part: int) -> None:
    parts = plan_parts(num_rows, rows_per_part)
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(num_rows))
    assert [part.index for part in parts] == list(range(len(parts)))
    assert all(part.num_rows == rows_per_part for part in parts[:-1])
    assert sorted(part.name for part in parts) == [part.name for part in parts]


def test_names_and_refusals() -> None:
    assert Part(12, 0, 1).name == "00012"
    assert plan_parts(5, 2)[-1] == Part(2, 4, 5)
    with pytest.raises(ValueError, match="expected"):
        plan_parts(5, 0)


def test_a_job_from_start_to_end(tmp_path: Path) -> None:
    job, parts = Job(str(tmp_path / "out")), plan_parts(5, 2)
    with job.claimed({"a": 1}):
        job.start({"a": 1})
        assert job.pending(parts) == parts
        job.commit(parts[1], {"n": 1, "log": {"host": "x"}})
        assert job.pending(parts) == [parts[0], parts[2]]
    with job.claimed({"a": 1}):
        for part in job.pending(parts):
            job.commit(part, {"n": part.index, "log": {"host": "y"}})
        assert [record["n"] for record in job.records(parts)] == [0, 1, 2]
        assert (tmp_path / "out/work/lease.json").exists()
        job.finish({"rows": 5}, parts)
    assert job.manifest() == {"rows": 5}
    assert not (tmp_path / "out/work").exists()
    log = [json.loads(line) for line in (tmp_path / "out/run_log.jsonl").read_text().splitlines()]
    assert [line["host"] for line in log] == ["y", "x", "y"]
    job.take_back(parts[:1])
    assert job.manifest() is None
    assert job.pending(parts) == parts[:1]


def test_what_killed_writers_left_goes_when_the_folder_is_finished(tmp_path: Path) -> None:
    out = tmp_path / "out"
    job, (part,) = Job(str(out)), plan_parts(1, 1)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(out / "shards/00000.parquet")], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    writer.kill()
    writer.communicate()
    assert len(list((out / "shards").iterdir())) == 1
    (out / "shards/.kept.tmp").touch()
    (out / "plan.json").write_text('{"a": 1}')
    with job.claimed({"a": 1}):
        job.commit(part, {"log": {}})
        job.finish({}, [part])
    assert [path.name for path in (out / "shards").iterdir()] == [".kept.tmp"]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    job = Job(str(tmp_path))
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(StorageError, match="holds files of something else"), job.claimed({"a": 1}):
        pass
    assert os.listdir(tmp_path) == ["photo.jpg"]
    (tmp_path / "photo.jpg").unlink()
    with job.claimed({"a": 1}):
        job.start({"a": 1})
    with (
        pytest.raises(StorageError, match="was started with a = 1, now a = 2; delete the folder"),
        job.claimed({"a": 2}),
    ):
        pass


def test_what_fails_before_it_starts_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("new", "mine"):
        with pytest.raises(KeyError), Job(str(tmp_path / name)).claimed({"a": 1}):
            raise KeyError
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["mine"]


def test_a_second_run_is_refused_while_the_first_works(tmp_path: Path, short_patience, capsys) -> None:
    where = str(tmp_path / "lease.json")
    with Lease(where):
        with pytest.raises(StorageError, match=rf"process {os.getpid()} of .* is at work in this folder"), Lease(where):
            pass
        assert "may still be at work here" in capsys.readouterr().err
    with Lease(where):  # let go, so nothing to wait for
        pass
    assert capsys.readouterr().err == ""


def test_a_silent_holder_of_another_machine_is_waited_out(tmp_path: Path, short_patience) -> None:
    where = tmp_path / "lease.json"
    where.write_text(json.dumps({"holder": "x", "beat": 7, "machine": "far away", "process": 1}))
    started = time.monotonic()
    with Lease(str(where)):
        assert time.monotonic() - started >= 2.0
        assert json.loads(where.read_text())["holder"] != "x"


def test_who_was_thought_dead_notices(tmp_path: Path, short_patience) -> None:
    where = tmp_path / "lease.json"
    with Lease(str(where)) as lease:
        lease.check()
        where.write_text(json.dumps({"holder": "x", "beat": 1, "machine": "far away", "process": 1}))
        time.sleep(5 * module.BEAT_SECONDS)
        with pytest.raises(StorageError, match="process 1 of far is at work"):
            lease.check()
    assert json.loads(where.read_text())["holder"] == "x"  # which is not ours to let go


def test_a_killed_holder_of_this_machine_needs_no_waiting(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, out], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "claimed\n"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    assert Path(out, "work/lease.json").exists()
    started = time.monotonic()
    with Job(out).claimed({"a": 1}):
        assert time.monotonic() - started < module.SILENT_SECONDS / 2
