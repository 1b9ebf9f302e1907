"""Partitions and commit records, with which a killed job resumes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigrl_core.errors import StorageError
from sigrl_core.io.resumable_job import Partition, ResumableJob, plan_partitions

pytestmark = pytest.mark.unit

WRITE = """
import sys, time
from sigrl_core.io import storage
with storage.open_output(sys.argv[1]) as file:
    print("writing", flush=True)
    time.sleep(60)
"""


@given(st.integers(0, 5000), st.integers(1, 700))
def test_partitions_cover_every_row_once_in_order(num_rows: int, rows_per_partition: int) -> None:
    parts = plan_partitions(num_rows, rows_per_partition)
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(num_rows))
    assert [part.index for part in parts] == list(range(len(parts)))
    assert all(part.num_rows == rows_per_partition for part in parts[:-1])
    assert sorted(part.name for part in parts) == [part.name for part in parts]


def test_names_and_wrong_sizes() -> None:
    assert Partition(12, 0, 1).name == "00012"
    assert plan_partitions(5, 2)[-1] == Partition(2, 4, 5)
    with pytest.raises(ValueError, match="expected"):
        plan_partitions(5, 0)


def test_a_job_from_start_to_end(tmp_path: Path) -> None:
    job, parts = ResumableJob(str(tmp_path / "out")), plan_partitions(5, 2)
    with job.locked({"a": 1}):
        job.start({"a": 1})
        assert job.pending(parts) == parts
        job.commit(parts[1], {"n": 1, "log": {"host": "x"}})
        assert job.pending(parts) == [parts[0], parts[2]]
    with job.locked({"a": 1}):
        for part in job.pending(parts):
            job.commit(part, {"n": part.index, "log": {"host": "y"}})
        assert [record["n"] for record in job.records(parts)] == [0, 1, 2]
        assert (tmp_path / "out/work/lease.json").exists()
        job.finish({"rows": 5}, parts)
    assert job.manifest() == {"rows": 5}
    assert not (tmp_path / "out/work").exists()
    log = [json.loads(line) for line in (tmp_path / "out/run_log.jsonl").read_text().splitlines()]
    assert [line["host"] for line in log] == ["y", "x", "y"]
    job.reopen(parts[:1])
    assert job.manifest() is None
    assert job.pending(parts) == parts[:1]


def test_finishing_removes_the_temporary_files_of_killed_writers(tmp_path: Path) -> None:
    out = tmp_path / "out"
    job, (part,) = ResumableJob(str(out)), plan_partitions(1, 1)
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
    with job.locked({"a": 1}):
        job.commit(part, {"log": {}})
        job.finish({}, [part])
    assert [path.name for path in (out / "shards").iterdir()] == [".kept.tmp"]


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    job = ResumableJob(str(tmp_path))
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(StorageError, match="holds files of something else"), job.locked({"a": 1}):
        pass
    assert os.listdir(tmp_path) == ["photo.jpg"]
    (tmp_path / "photo.jpg").unlink()
    with job.locked({"a": 1}):
        job.start({"a": 1})
    with (
        pytest.raises(StorageError, match="was started with a = 1, now a = 2; delete the folder"),
        job.locked({"a": 2}),
    ):
        pass


def test_a_failure_before_the_start_leaves_no_files(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for name in ("new", "old"):
        with pytest.raises(KeyError), ResumableJob(str(tmp_path / name)).locked({"a": 1}):
            raise KeyError
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["old"]
