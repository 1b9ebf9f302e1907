"""Preprocessing on a real local Ray: the same bytes whoever works, whatever is killed; every row accounted for."""

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sigrl_core.config import PreprocessConfig, Resources
from sigrl_core.data.images import REASONS
from sigrl_core.data.label_states import decode_states
from sigrl_core.data.shards import ShardFolder, assign_split
from sigrl_core.errors import CorpusError, StorageError
from sigrl_core.io.checksums import sha256_of
from sigrl_core.io.resumable_job import ResumableJob, plan_partitions
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.on_ray import preprocess as preprocess_module
from sigrl_core.on_ray.deduplicate import deduplicate
from sigrl_core.on_ray.preprocess import preprocess
from tests.conftest import fingerprint
from tests.hostile import hostile
from tests.in_process import call, partitions_here
from tests.processes import apart_from_ray, joined_to_ray

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

PIPELINE = Path(__file__).parents[2] / "pipelines" / "preprocess.py"


def config_for(images: Path, out: Path, **changes) -> PreprocessConfig:
    config = PreprocessConfig(corpus="folder", images=str(images), out=str(out), short_side=32, rows_per_shard=3)
    return dataclasses.replace(config, **changes)


def read_all(out: Path, column: str) -> list:
    shards = ShardFolder.open(str(out))
    return [value for i in range(len(shards.shard_rows)) for value in shards.read_shard(i)[column].to_pylist()]


def test_shards_hold_the_corpus_in_order(images: Path, tmp_path: Path) -> None:
    manifest = preprocess(config_for(images, tmp_path / "out"))
    shards = ShardFolder.open(str(tmp_path / "out"))
    shards.verify()
    assert shards.manifest == manifest
    assert shards.shard_rows == [3, 3, 3, 3]
    assert read_all(tmp_path / "out", "uri") == [f"cat/{i:02d}.jpg" for i in range(6)] + [
        f"dog/{i:02d}.jpg" for i in range(6, 12)
    ]
    assert decode_states(shards.read_shard(0)["label_states"], 2).tolist() == [[1, -1]] * 3
    assert manifest["label_counts"] == {name: {"present": 6, "absent": 6, "unknown": 0} for name in ("cat", "dog")}
    assert {
        min(row) for row in zip(read_all(tmp_path / "out", "width"), read_all(tmp_path / "out", "height"), strict=True)
    } == {32}
    assert [shard["short_sides"] for shard in manifest["shards"]] == [{"32": 3}] * 4
    assert {name: manifest["config"][name] for name in ("short_side", "quality", "chroma", "long_side")} == {
        "short_side": 32,
        "quality": 90,
        "chroma": "4:4:4",
        "long_side": "aligned",
    }
    names = [f"shards/0000{i}.parquet" for i in range(4)]
    tables = [
        "conflicts.parquet",
        "duplicates.parquet",
        "listing.parquet",
        "manifest.json",
        "plan.json",
        "quarantine.parquet",
    ]
    expected = [*tables, *names, "vocabulary.json"]
    assert sorted(fingerprint(tmp_path / "out")) == expected


def test_duplicates_and_quarantine_are_accounted_for_whoever_works(images: Path, tmp_path: Path) -> None:
    shutil.copy(images / "cat/00.jpg", images / "cat/00 again.jpg")  # listed first: a space sorts before a dot
    shutil.copy(images / "cat/01.jpg", images / "dog/99.jpg")  # in another part
    for name in ("06", "07", "08"):  # a whole part of duplicates
        shutil.copy(images / f"dog/{name}.jpg", images / f"zebra-{name}.jpg")
    (images / "cat/text.jpg").write_text("not an image")
    (images / "cat/empty.jpg").touch()
    (images / "dog/half.jpg").write_bytes((images / "dog/06.jpg").read_bytes()[:300])
    outs = [tmp_path / "one", tmp_path / "three"]
    manifests = [
        preprocess(config_for(images, out), Resources(num_workers=workers))
        for out, workers in zip(outs, (1, 3), strict=True)
    ]
    assert fingerprint(outs[0]) == fingerprint(outs[1])
    counts = {key: manifests[0][key] for key in ("rows_in", "rows_out", "quarantined", "duplicates")}
    assert counts == {"rows_in": 20, "rows_out": 12, "quarantined": 3, "duplicates": 5}
    assert [shard["name"] for shard in manifests[0]["shards"]] == [f"{i:05d}.parquet" for i in range(5)]
    duplicates = pq.read_table(outs[0] / "duplicates.parquet").to_pylist()
    assert [(row["uri"], row["kind"]) for row in duplicates] == [
        ("cat/00.jpg", "exact"),
        ("dog/99.jpg", "exact"),
        *((f"zebra-{name}.jpg", "exact") for name in ("06", "07", "08")),
    ]
    uris = read_all(outs[0], "uri")
    assert "cat/00 again.jpg" in uris
    assert "cat/00.jpg" not in uris
    assert "dog/99.jpg" not in uris
    quarantine = {row["uri"]: row["reason"] for row in ShardFolder.open(str(outs[0])).read_quarantine().to_pylist()}
    assert quarantine == {"cat/text.jpg": "not_an_image", "cat/empty.jpg": "empty", "dog/half.jpg": "truncated"}


@pytest.mark.usefixtures("in_process")
def test_hostile_files_are_all_accounted_for(tmp_path: Path, make_image, encoded) -> None:
    """With the endings that images have, whatever they are."""
    drawn = [encoded(make_image(seed, 400, 300)) for seed in range(3)]
    files = list(hostile(drawn, 150, seed=2))
    (tmp_path / "in").mkdir()
    for number, file in enumerate(files):
        (tmp_path / "in" / f"{number:03d}{('.jpg', '.png', '.gif')[number % 3]}").write_bytes(file.data)
    manifest = preprocess(
        config_for(tmp_path / "in", tmp_path / "out", rows_per_shard=40, max_pixels=50_000_000, no_labels=True)
    )
    ShardFolder.open(str(tmp_path / "out")).verify()
    assert manifest["rows_in"] == 150
    assert manifest["rows_out"] + manifest["quarantined"] + manifest["duplicates"] == 150
    quarantine = ShardFolder.open(str(tmp_path / "out")).read_quarantine().to_pylist()
    assert {row["reason"] for row in quarantine} <= set(REASONS)
    duplicates = pq.read_table(tmp_path / "out/duplicates.parquet")["uri"].to_pylist()
    places = [*read_all(tmp_path / "out", "uri"), *(row["uri"] for row in quarantine), *duplicates]
    assert sorted(places) == sorted(path.name for path in (tmp_path / "in").iterdir())
    for number, file in enumerate(files):
        stored = not any(row["uri"].startswith(f"{number:03d}.") for row in quarantine)
        assert file.expected in ("either", "good") or not stored, file.kind


@pytest.mark.usefixtures("in_process")
def test_near_duplicates_are_taken_out_where_asked(images: Path, tmp_path: Path) -> None:
    Image.open(images / "cat/01.jpg").resize((90, 70)).save(images / "cat/01 larger.jpg", quality=70)
    assert preprocess(config_for(images, tmp_path / "all"))["duplicates"] == 0
    manifest = preprocess(config_for(images, tmp_path / "out", near_duplicates=4))
    assert (manifest["rows_out"], manifest["duplicates"]) == (12, 1)
    assert pq.read_table(tmp_path / "out/duplicates.parquet")["kind"].to_pylist() == ["near"]
    uris = read_all(tmp_path / "out", "uri")
    assert "cat/01 larger.jpg" in uris  # listed first: a space sorts before a dot
    assert "cat/01.jpg" not in uris


@pytest.mark.usefixtures("in_process")
def test_the_second_run_finds_it_done(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_for(images, tmp_path / "out")
    first = preprocess(config)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    worked: list[object] = []
    monkeypatch.setattr("sigrl_core.on_ray.preprocess.run_partitions", lambda *_, **__: worked.append(_))
    assert preprocess(config) == first
    assert worked == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


@pytest.mark.usefixtures("in_process")
def test_another_run_in_the_same_folder_is_refused(images: Path, tmp_path: Path) -> None:
    config = config_for(images, tmp_path / "out")
    preprocess(config)
    with pytest.raises(StorageError, match=r"was started with quality = 90, now quality = 80; delete .* another --out"):
        preprocess(dataclasses.replace(config, quality=80))
    shutil.copy(images / "cat/00.jpg", images / "cat/new.jpg")
    with pytest.raises(StorageError, match=r"was made of 12 listed images of .*, which now lists 13"):
        preprocess(config)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(StorageError, match="holds files of something else"):
        preprocess(config_for(images, tmp_path / "other"))


@pytest.mark.usefixtures("in_process")
def test_no_usable_image(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        (tmp_path / "pictures" / f"{i}.jpg").write_text(f"text {i}")
    with pytest.raises(CorpusError, match=r"none of 4 images can be used \(not_an_image\)"):
        preprocess(config_for(tmp_path / "pictures", tmp_path / "out", no_labels=True))
    assert (tmp_path / "out/quarantine.parquet").exists()
    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.usefixtures("in_process")
def test_listed_files_that_are_not_there(images: Path, tmp_path: Path) -> None:
    uris = ["cat/00.jpg", "cat/missing.jpg", "http://host/1.jpg", str(images / "dog/07.jpg")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"uri": uri, "labels": ["x"]}) + "\n" for uri in uris))
    preprocess(config_for(images, tmp_path / "out", corpus="jsonl", annotations=str(tmp_path / "a.jsonl")))
    assert read_all(tmp_path / "out", "uri") == [uris[0], uris[3]]
    quarantine = ShardFolder.open(str(tmp_path / "out")).read_quarantine()
    assert quarantine["reason"].to_pylist() == ["unreachable", "unreachable"]
    assert "scheme http:// is not known" in quarantine["detail"][1].as_py()


@pytest.mark.usefixtures("in_process")
def test_vocabulary_file_gives_the_order(images: Path, tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text('[{"label": "okapi", "split": "unseen"}, {"label": "dog"}, {"label": "cat"}]')
    config = config_for(images, tmp_path / "out", vocabulary=str(tmp_path / "v.json"), annotation_scope="seen")
    preprocess(config)
    shards = ShardFolder.open(str(tmp_path / "out"))
    assert shards.vocabulary.names == ["okapi", "dog", "cat"]
    assert decode_states(shards.read_shard(0)["label_states"], 3).tolist() == [[0, -1, 1]] * 3
    (tmp_path / "v.txt").write_text("dogs\ncat\n")
    with pytest.raises(CorpusError, match="did you mean 'dogs'"):
        preprocess(config_for(images, tmp_path / "other", vocabulary=str(tmp_path / "v.txt")))


@pytest.mark.usefixtures("in_process")
def test_one_positive_each_for_training_and_all_labels_for_validation(make_image, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    names, labels = [f"{n:02d}.jpg" for n in range(20)], ["cat", "dog", "sofa"]
    for number, name in enumerate(names):
        make_image(number).save(tmp_path / "in" / name)
    (tmp_path / "v.txt").write_text("cat\ndog\nsofa\nokapi\n")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"uri": name, "labels": labels}) + "\n" for name in names))
    common = {"corpus": "jsonl", "annotations": str(tmp_path / "a.jsonl"), "vocabulary": str(tmp_path / "v.txt")}
    told: dict[str, set[tuple[int, ...]]] = {}
    for mode in ("full", "positives-only", "single-positive"):
        out = tmp_path / mode
        preprocess(config_for(tmp_path / "in", out, **common, label_policy=mode, validation_fraction=0.3))
        encoded = zip(read_all(out, "sha256"), read_all(out, "label_states"), strict=True)
        states = [
            (assign_split(sha, 0, 0.3) == "validation", tuple(np.frombuffer(row, np.int8).tolist()))
            for sha, row in encoded
        ]
        assert 2 < sum(held for held, _ in states) < 12
        assert {row for held, row in states if held} == {(1, 1, 1, -1)}
        told[mode] = {row for held, row in states if not held}
    assert told["full"] == {(1, 1, 1, -1)}
    assert told["positives-only"] == {(1, 1, 1, 0)}
    assert told["single-positive"] == {(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)}


@pytest.mark.usefixtures("in_process")
def test_a_full_disk_stops_the_run_and_the_same_command_goes_on(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "small disk"
    out.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=28k", "none", out], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        with pytest.raises(StorageError, match="disk full; free some space and run the same command again"):
            preprocess(config_for(images, out))
        assert not (out / "manifest.json").exists()
        subprocess.run(["mount", "-o", "remount,size=1m", out], check=True)
        assert preprocess(config_for(images, out))["rows_out"] == 12
    finally:
        subprocess.run(["umount", out], check=True)


@pytest.mark.usefixtures("in_process")
def test_images_that_could_not_be_reached_are_taken_again(images: Path, tmp_path: Path, make_image) -> None:
    """And then the folder is as if they had been there, duplicates that now come later taken out again."""
    make_image(6, 80, 70).save(images / "cat/late.jpg")
    (images / "zebra").mkdir()
    shutil.copy(images / "cat/late.jpg", images / "zebra/same as late.jpg")
    uris = sorted(str(path.relative_to(images)) for path in images.rglob("*.jpg"))
    rows = [json.dumps({"uri": uri, "labels": []}) + "\n" for uri in [*uris, "never there.jpg"]]
    (tmp_path / "a.jsonl").write_text("".join(rows))
    listed = {"corpus": "jsonl", "annotations": str(tmp_path / "a.jsonl"), "no_labels": True}
    config = config_for(images, tmp_path / "out", **listed)
    preprocess(dataclasses.replace(config, out=str(tmp_path / "whole")))
    os.rename(images / "cat/late.jpg", tmp_path / "kept")
    before = preprocess(config)
    assert (before["quarantined"], before["duplicates"]) == (2, 0)
    assert "zebra/same as late.jpg" in read_all(tmp_path / "out", "uri")
    os.rename(tmp_path / "kept", images / "cat/late.jpg")
    assert preprocess(config) == before
    after = preprocess(config, retry_failed=True)
    assert (after["quarantined"], after["duplicates"]) == (1, 1)
    assert fingerprint(tmp_path / "out") == fingerprint(tmp_path / "whole")
    os.rename(images / "cat/late.jpg", tmp_path / "kept")  # now what was a duplicate is needed, and done again
    (tmp_path / "out/parts/00002.json").unlink()
    (tmp_path / "out/manifest.json").unlink()
    preprocess(config)
    ShardFolder.open(str(tmp_path / "out")).verify()
    assert "zebra/same as late.jpg" in read_all(tmp_path / "out", "uri")


@pytest.mark.usefixtures("in_process")
def test_shards_of_so_many_bytes(images: Path, tmp_path: Path, make_image) -> None:
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 256, (600, 600, 3), np.uint8)
        Image.fromarray(noise).save(images / f"cat/noise {number}.jpg", quality=90)
    sizes = [path.stat().st_size for path in sorted(images.rglob("*.jpg"))]
    config = config_for(images, tmp_path / "out", rows_per_shard=1000, bytes_per_shard=1_000_000)
    shards = preprocess(config)["shards"]
    assert len(shards) > 1
    start = 0
    for shard in shards:
        assert sum(sizes[start : start + shard["rows"]]) <= 1_000_000
        start += shard["rows"]
    (tmp_path / "a.jsonl").write_text('{"uri": "cat/00.jpg"}\n')
    listed = dataclasses.replace(config, corpus="jsonl", annotations=str(tmp_path / "a.jsonl"), out=str(tmp_path / "b"))
    with pytest.raises(CorpusError, match="lists no sizes; set --rows-per-shard"):
        preprocess(listed)


def test_deduplication_holds_few_records_at_a_time(images: Path, tmp_path: Path) -> None:
    config, parts = config_for(images, tmp_path), plan_partitions(64_000, 100)
    job = ResumableJob(config.out)
    for folder in ("parts", "work/shards"):
        (tmp_path / folder).mkdir(parents=True)
    for part in parts:
        (tmp_path / f"work/shards/{part.name}.parquet").touch()
        names = [f"cat/{row:06d}.jpg" for row in range(part.start, part.stop)]
        told = {"uris": names, "sha256": [sha256_of(name.encode()) for name in names], "perceptual_hash": [None] * 100}
        record = {**told, "shard": {"rows": 100}, "quarantine": []}
        (tmp_path / f"parts/{part.name}.json").write_text(json.dumps(record))

    def held(call) -> int:
        tracemalloc.start()
        try:
            assert len(call()) == len(parts)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak = held(lambda: deduplicate(config, job, Vocabulary.from_names(["cat"]), parts))
    assert peak < held(lambda: list(job.records(parts))) / 2


@pytest.mark.usefixtures("in_process")
def test_a_second_run_at_the_same_time_is_refused(images: Path, tmp_path: Path) -> None:
    config = config_for(images, tmp_path / "out")
    with ResumableJob(config.out).locked({**preprocess_module._portable(config), "vocabulary_hash": None}):
        refused = subprocess.run([*command(config), "--num-workers", "1"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert f"process {os.getpid()} of" in refused.stderr
    assert "uses this folder" in refused.stderr


def command(config: PreprocessConfig) -> list[str]:
    """What a user would type for a configuration of `config_for`."""
    values = {"corpus": config.corpus, "images": config.images, "short-side": config.short_side}
    values |= {"rows-per-shard": config.rows_per_shard, "out": config.out}
    flags = [str(word) for name, value in values.items() for word in (f"--{name}", value)]
    return [sys.executable, str(PIPELINE), *flags, "--num-workers", "2"]


@pytest.mark.soak
def test_runs_killed_at_random_moments_end_in_the_same_bytes(
    images: Path, tmp_path: Path, make_image, soak: bool
) -> None:
    """Short form: SIGKILL to a worker of a command that joins the Ray of the tests. Long form: SIGKILL to the driver, a
    worker, or the whole node of commands with a Ray of their own, at any moment from a run's start to its end."""
    for i in range(12, 90):
        make_image(i, 900, 700).save(images / "dog" / f"{i}.jpg")
    for i in range(0, 60, 7):
        shutil.copy(images / "dog/80.jpg", images / f"dog/{i} again.jpg")
    whole = config_for(images, tmp_path / "whole", rows_per_shard=2)
    with partitions_here():
        assert call(*command(whole)[1:]).returncode == 0
    seconds = 0.0
    if soak:
        started = time.monotonic()
        subprocess.run(
            command(dataclasses.replace(whole, out=str(tmp_path / "timed"))), capture_output=True, check=True
        )
        seconds = time.monotonic() - started
    kinds = (*("driver", "worker", "node") * 3, "driver") if soak else ("worker",)
    rng = random.Random(20261124)
    done_twice, killed = 0, set()
    for run, kind in enumerate(kinds):
        config = dataclasses.replace(whole, out=str(tmp_path / f"killed {run}"))
        environment = apart_from_ray() if soak else joined_to_ray()
        process = subprocess.Popen(
            command(config), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        time.sleep(rng.uniform(0.3, 1.0) * seconds)
        victims = [process.pid]
        while kind != "driver" and process.poll() is None:  # until there is one
            if victims := below(
                process.pid if soak else os.getpid(), {"worker": "ray::MapWorker", "node": "/raylet"}[kind]
            ):
                break
            time.sleep(0.1)
        for victim in victims[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                killed.add(kind)
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0 or kind != "worker", errors
        time.sleep(rng.uniform(0, 1))
        records = {path: path.stat().st_mtime_ns for path in Path(config.out).glob("parts/*.json")}
        assert call(*command(config)[1:]).returncode == 0
        done_twice += sum(path.stat().st_mtime_ns != changed for path, changed in records.items())
        assert fingerprint(Path(config.out)) == fingerprint(tmp_path / "whole"), run
    assert killed >= ({"driver", "worker"} if soak else {"worker"})
    runs = len(kinds)
    print(f"{runs} runs killed at random moments: {runs} end in the same bytes; {done_twice} parts done twice")
    assert done_twice <= 4 * runs  # at most those that workers of a dead driver still had in hand


def below(pid: int, name: str) -> list[int]:
    """The processes started by `pid`, however far down, whose command has `name` in it."""
    found = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = {
        int(pid): (int(parent), args) for pid, parent, args in (line.split(None, 2) for line in found.splitlines()[1:])
    }

    def is_below(child: int) -> bool:
        while child in rows:
            child = rows[child][0]
            if child == pid:
                return True
        return False

    return [child for child, (_, args) in rows.items() if name in args.split()[0] and is_below(child)]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.usefixtures("in_process")
def test_a_killed_run_goes_on_and_writes_the_same_bytes(images: Path, tmp_path: Path, make_image, end: int) -> None:
    for i in range(12, 150):
        make_image(i, 900, 700).save(images / "dog" / f"{i}.jpg")
    out = tmp_path / "killed"
    config = config_for(images, out, rows_per_shard=2)
    arguments = ["--corpus", "folder", "--images", images, "--short-side", "32", "--rows-per-shard", "2"]
    full = [sys.executable, PIPELINE, *map(str, arguments), "--out", str(out), "--num-workers", "1"]
    process = subprocess.Popen(
        full, env=joined_to_ray(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    deadline = time.monotonic() + 120
    while len(list(out.glob("parts/*.json"))) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    os.kill(process.pid, end)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-end if end == signal.SIGKILL else 130)
    if end == signal.SIGINT:
        assert errors.endswith("interrupted; run the same command again to resume\n")
    assert not (out / "manifest.json").exists()
    time.sleep(2)  # a worker of the killed run may be writing its last part
    done = [path.stem for path in out.glob("parts/*.json")]
    written = {name: (out / "work/shards" / f"{name}.parquet").stat().st_mtime_ns for name in done}
    preprocess(config)
    assert {name: (out / "shards" / f"{name}.parquet").stat().st_mtime_ns for name in done} == written
    preprocess(dataclasses.replace(config, out=str(tmp_path / "whole")))
    assert fingerprint(out) == fingerprint(tmp_path / "whole")
