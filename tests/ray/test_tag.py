"""Batch tagging on a real local Ray: one row per image in listing order, the same bytes whoever works."""

import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sigrl_core.config import PreprocessConfig, Resources, TagConfig
from sigrl_core.data.images import REASONS
from sigrl_core.errors import CheckpointError, ConfigError, CorpusError, StorageError
from sigrl_core.inference.tagger import Tagger
from sigrl_core.labels.vocabulary import Vocabulary
from sigrl_core.model.checkpoint import checkpoint_version
from sigrl_core.on_ray import tag as tag_module
from sigrl_core.on_ray.preprocess import preprocess
from sigrl_core.on_ray.tag import dry_run, tag
from tests.conftest import REPOSITORY, fingerprint, tagged_rows, untrained_checkpoint
from tests.hostile import hostile
from tests.in_process import partitions_here
from tests.processes import joined_to_ray

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

PIPELINE = Path(__file__).parents[2] / "pipelines" / "tag.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return untrained_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture
def album(images: Path) -> Path:
    """The 12 images of `images`, and four files that are none."""
    (images / "cat" / "empty.jpg").touch()
    (images / "cat" / "text.JPG").write_text("not an image")
    (images / "dog" / "half.jpg").write_bytes((images / "dog" / "06.jpg").read_bytes()[:300])
    (images / "dog" / "notes.txt").write_text("no image by its name")
    return images


def config_for(checkpoint: Path, album: Path, out: Path, **changes) -> TagConfig:
    config = TagConfig(checkpoint=str(checkpoint), images=str(album), out=str(out), rows_per_shard=4)
    return dataclasses.replace(config, **changes)


@pytest.mark.usefixtures("in_process")
def test_one_row_for_every_image_in_order(checkpoint: Path, album: Path, tmp_path: Path, capsys) -> None:
    manifest = tag(config_for(checkpoint, album, tmp_path / "out"))
    rows = tagged_rows(tmp_path / "out")
    files = {str(path.relative_to(album)): path for path in album.rglob("*") if path.is_file()}
    assert [row["uri"] for row in rows] == sorted(files)
    assert len(files) == 16
    assert all(row["size"] == files[row["uri"]].stat().st_size for row in rows)
    errors = {row["uri"]: row["error"] for row in rows if "error" in row}
    assert errors == {
        "cat/empty.jpg": "empty",
        "cat/text.JPG": "not_an_image",
        "dog/half.jpg": "truncated",
        "dog/notes.txt": "not_an_image",
    }
    details = {row["uri"]: row["detail"] for row in rows if "detail" in row}
    assert details.keys() == {"cat/text.JPG", "dog/notes.txt"}
    assert all(detail.startswith("starts with b'") for detail in details.values())
    assert all(row["tags"] == [] for row in rows if "error" in row)
    found = {"rows": 16, "tagged": 12, "errors": {"empty": 1, "not_an_image": 2, "truncated": 1}}
    assert found.items() <= manifest.items()
    tables = [pq.read_table(tmp_path / "out" / file["name"]) for file in manifest["files"]]
    assert [table.num_rows for table in tables] == [4, 4, 4, 4]
    assert [uri for table in tables for uri in table["uri"].to_pylist()] == sorted(files)
    for name in ("model", "vocabulary"):
        assert {value for table in tables for value in table[name].to_pylist()} == {manifest[name]}
    expected = ["_SUCCESS", "manifest.json", "plan.json", "ranges.json", *(file["name"] for file in manifest["files"])]
    assert sorted(fingerprint(tmp_path / "out")) == sorted(expected)

    (one_line,) = re.findall(r'python -c "(import pyarrow.*)"$', (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    exec(one_line.replace("runs/tags", str(tmp_path / "out")))
    assert "cat/00.jpg" in capsys.readouterr().out

    tagger = Tagger.load(str(checkpoint))  # alone, each image gets the tags it got in its batch
    good = [row for row in rows if "error" not in row]
    for row in good:
        (tags,) = tagger.tag([(album / row["uri"]).read_bytes()])
        assert tags.labels == [item["label"] for item in row["tags"]]
        assert tags.scores == pytest.approx([item["score"] for item in row["tags"]], abs=1e-5)
    assert len({json.dumps(row["tags"]) for row in good}) == 12  # they are not all alike


def test_the_number_of_workers_changes_no_byte_and_the_second_run_finds_it_done(
    checkpoint: Path, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outs = [tmp_path / "one", tmp_path / "two"]
    with partitions_here():
        tag(config_for(checkpoint, album, outs[0]))
    manifest = tag(config_for(checkpoint, album, outs[1]), Resources(num_workers=2))
    assert fingerprint(outs[0]) == fingerprint(outs[1])
    before = {path: path.stat().st_mtime_ns for path in outs[1].rglob("*")}
    worked: list[object] = []
    monkeypatch.setattr("sigrl_core.on_ray.tag.run_partitions", lambda *_, **__: worked.append(_))
    assert tag(config_for(checkpoint, album, outs[1])) == manifest
    assert worked == []
    assert {path: path.stat().st_mtime_ns for path in outs[1].rglob("*")} == before


@pytest.mark.usefixtures("in_process")
def test_words_that_training_never_saw(checkpoint: Path, album: Path, tmp_path: Path) -> None:
    words = ["okapi", "a red star", "drizzle", "Fußgängerzone", "42"]
    (tmp_path / "words.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    asked = {"vocabulary": str(tmp_path / "words.txt"), "rows_per_shard": 1000}
    tag(config_for(checkpoint, album, tmp_path / "three", top_k=3, **asked))
    tag(config_for(checkpoint, album, tmp_path / "all", top_k=50, **asked))
    for three, everything in zip(tagged_rows(tmp_path / "three"), tagged_rows(tmp_path / "all"), strict=True):
        assert three["tags"] == everything["tags"][:3]
        if "error" not in three:
            assert len(three["tags"]) == 3
            assert sorted(item["label"] for item in everything["tags"]) == sorted(words)
            scores = [item["score"] for item in everything["tags"]]
            assert scores == sorted(scores, reverse=True)


@pytest.mark.usefixtures("in_process")
def test_another_run_in_the_same_folder_is_refused(checkpoint: Path, album: Path, tmp_path: Path) -> None:
    config = config_for(checkpoint, album, tmp_path / "out")
    tag(config)
    before = fingerprint(tmp_path / "out")
    other = untrained_checkpoint(tmp_path / "other" / "checkpoint", seed=1)
    (tmp_path / "words.txt").write_text("okapi\n")
    for what, changes in {
        "model": {"checkpoint": str(other)},
        "vocabulary": {"vocabulary": str(tmp_path / "words.txt")},
        "top_k": {"top_k": 2},
        "rows_per_shard": {"rows_per_shard": 5},
    }.items():
        with pytest.raises(StorageError, match=f"was started with {what} = .*; delete the folder or choose another"):
            tag(dataclasses.replace(config, **changes))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("two years of work")
    with pytest.raises(StorageError, match="holds files of something else"):
        tag(dataclasses.replace(config, out=str(tmp_path / "mine")))
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]
    for inside in (album, album / "tags"):
        with pytest.raises(ConfigError, match="below images, where the next run would list it"):
            tag(dataclasses.replace(config, out=str(inside)))
    assert fingerprint(tmp_path / "out") == before


@pytest.mark.usefixtures("in_process")
def test_inputs_that_cannot_be_used(checkpoint: Path, album: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    config = config_for(checkpoint, album, tmp_path / "out")
    for kind, message, changes in (
        (CheckpointError, "no checkpoint here", {"checkpoint": str(album)}),
        (CorpusError, "no such folder of images", {"images": str(tmp_path / "missing")}),
        (CorpusError, "no files under it", {"images": str(tmp_path / "empty")}),
        (StorageError, "no such file", {"vocabulary": str(tmp_path / "missing.txt")}),
    ):
        with pytest.raises(kind, match=message):
            tag(dataclasses.replace(config, **changes))
    assert not (tmp_path / "out").exists()


def test_a_killed_run_goes_on_and_writes_the_same_bytes(
    checkpoint: Path, album: Path, tmp_path: Path, make_image
) -> None:
    """The process of the tests goes on, and writes the bytes of a run that nothing ends."""
    for i in range(12, 76):
        make_image(i, 600, 500).save(album / "dog" / f"{i}.jpg")
    config = config_for(checkpoint, album, tmp_path / "killed", rows_per_shard=2)
    arguments = ["--checkpoint", checkpoint, "--images", album, "--out", config.out, "--rows-per-shard", 2]
    full = [sys.executable, PIPELINE, *arguments]
    process = subprocess.Popen(
        [*map(str, full)], env=joined_to_ray(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    commits = tmp_path / "killed" / "parts"
    deadline = time.monotonic() + 120
    while len(list(commits.glob("*.json"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "manifest.json").exists()
    time.sleep(1)  # the model's process may be writing its last part
    kept = {path.stem for path in commits.glob("*.json")}
    parts = {name: tmp_path / "killed" / "tags" / f"{name}.parquet" for name in kept}
    times = {name: path.stat().st_mtime_ns for name, path in parts.items()}
    assert len(kept) < 40
    with partitions_here():
        assert tag(config)["rows"] == 80
        assert {name: path.stat().st_mtime_ns for name, path in parts.items()} == times
        tag(dataclasses.replace(config, out=str(tmp_path / "whole")))
    assert fingerprint(tmp_path / "killed") == fingerprint(tmp_path / "whole")


@pytest.mark.usefixtures("in_process")
def test_killed_between_a_range_s_files_and_its_record(checkpoint: Path, album: Path, tmp_path: Path) -> None:
    config = config_for(checkpoint, album, tmp_path / "out", format="jsonl", embeddings=True, heat_maps=True)
    tag(config)
    whole, records = fingerprint(tmp_path / "out"), sorted((tmp_path / "out" / "parts").iterdir())
    for path in (records[1], tmp_path / "out" / "manifest.json", tmp_path / "out" / "_SUCCESS"):
        path.unlink()
    tag(config)
    assert json.loads(records[1].read_text())["work"]["images"] == 0  # taken from the file that was there
    assert fingerprint(tmp_path / "out") == whole


@pytest.mark.usefixtures("in_process")
def test_a_folder_of_version_0_1_0_is_continued(checkpoint: Path, album: Path, tmp_path: Path) -> None:
    config, out = config_for(checkpoint, album, tmp_path / "out"), tmp_path / "out"
    manifest = tag(config)
    plan = json.loads((out / "plan.json").read_text())
    plan["rows_per_part"] = plan.pop("rows_per_shard")
    (out / "plan.json").write_text(json.dumps(plan))
    (out / "manifest.json").rename(out / "_manifest.json")
    assert tag(config) == manifest
    assert not (out / "manifest.json").exists()  # nothing was to do
    shutil.copy(album / "cat" / "00.jpg", album / "cat" / "zz.jpg")
    assert tag(config)["rows"] == manifest["rows"] + 1
    assert (out / "manifest.json").exists()
    assert not (out / "_manifest.json").exists()
    with pytest.raises(StorageError, match="was started with rows_per_shard = 4, now rows_per_shard = 5"):
        tag(dataclasses.replace(config, rows_per_shard=5))


def read_now(out: Path) -> int:
    """Images that were read for the records as they are."""
    return sum(json.loads(path.read_text())["work"]["images"] for path in (out / "parts").iterdir())


@pytest.mark.usefixtures("in_process")
def test_what_came_changed_and_went_since(checkpoint: Path, album: Path, tmp_path: Path, make_image) -> None:
    config, out = config_for(checkpoint, album, tmp_path / "out"), tmp_path / "out"
    before = tag(config)
    files = {path: path.stat().st_mtime_ns for path in (out / "tags").iterdir()}
    assert read_now(out) == 16

    make_image(40, 300, 200).save(album / "cat" / "02a.jpg")  # into the first or second range
    make_image(41, 300, 200).save(album / "dog" / "06.jpg")  # another image under an old name
    (album / "dog" / "notes.txt").unlink()
    manifest = tag(config)
    assert manifest["rows"] == 16
    changed = [path for path in (out / "tags").iterdir() if files.get(path) != path.stat().st_mtime_ns]
    assert 2 <= len(changed) <= 3
    assert {file["name"] for file in manifest["files"]} == {file["name"] for file in before["files"]}
    again = [json.loads((out / "parts" / f"{path.stem}.json").read_text())["work"]["images"] for path in changed]
    assert sum(again) == 2
    fresh = dataclasses.replace(config, out=str(tmp_path / "fresh"))
    tag(fresh)
    assert close(tagged_rows(out), tagged_rows(tmp_path / "fresh"))

    for i in range(50, 80):  # more than a range may hold: it is cut
        make_image(i, 120, 90).save(album / "cat" / f"02{i}.jpg")
    for path in album.glob("dog/*.jpg"):
        path.unlink()  # a range without keys has no file
    manifest = tag(config)
    tables = [pq.read_table(out / file["name"]) for file in manifest["files"]]
    assert all(1 <= table.num_rows <= 8 for table in tables)
    assert {str(path.relative_to(out)) for path in (out / "tags").iterdir()} == {
        file["name"] for file in manifest["files"]
    }
    assert len(list((out / "parts").iterdir())) == len(tables)
    assert [uri for table in tables for uri in table["uri"].to_pylist()] == sorted(
        str(path.relative_to(album)) for path in album.rglob("*") if path.is_file()
    )
    tag(dataclasses.replace(fresh, out=str(tmp_path / "fresh again")))
    assert close(tagged_rows(out), tagged_rows(tmp_path / "fresh again"))
    assert not (out / "work").exists()


def close(rows: list[dict], others: list[dict]) -> bool:
    """Whether they say the same; batches differ, so scores may in their last digits."""
    assert [{**row, "tags": None} for row in rows] == [{**row, "tags": None} for row in others]
    for row, other in zip(rows, others, strict=True):
        assert [item["label"] for item in row["tags"]] == [item["label"] for item in other["tags"]]
        scores = [[item["score"] for item in each["tags"]] for each in (row, other)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    return True


@pytest.mark.usefixtures("in_process")
def test_a_cut_range_is_replaced_at_once(
    checkpoint: Path, album: Path, tmp_path: Path, make_image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before the manifest, what was there is still there, each key once; then the same command ends it."""
    config, out = config_for(checkpoint, album, tmp_path / "out"), tmp_path / "out"
    tag(config)
    before = {path.name: path.read_bytes() for path in (out / "tags").iterdir()}
    for i in range(50, 62):
        make_image(i, 120, 90).save(album / "cat" / f"02{i}.jpg")
    with monkeypatch.context() as patch:
        patch.setattr("sigrl_core.on_ray.tag._finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tag(config)
    assert not (out / "_SUCCESS").exists()
    assert not (out / "manifest.json").exists()
    assert {path.name: path.read_bytes() for path in (out / "tags").iterdir()} == before
    done = {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}
    assert tag(config)["rows"] == 28
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in done.items())  # nothing was tagged again
    uris = [row["uri"] for row in tagged_rows(out)]
    assert len(set(uris)) == len(uris) == 28


@pytest.mark.usefixtures("in_process")
def test_the_other_forms_of_output(checkpoint: Path, album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = config_for(checkpoint, album, out, format="jsonl", embeddings=True, heat_maps=True, top_k=2)
    tag(config)
    rows = tagged_rows(out)
    lines = [line for path in sorted((out / "jsonl").iterdir()) for line in path.read_text().splitlines()]
    assert sorted(map(json.loads, lines), key=lambda row: row["uri"]) == rows
    table = pq.read_table(out / "tags")
    for row in table.to_pylist():
        if row["error"]:
            assert (row["labels"], row["heat_maps"], row["embedding"]) == ([], [], None)
            continue
        assert sum(x * x for x in row["embedding"]) == pytest.approx(1, abs=1e-5)
        assert [Image.open(io.BytesIO(png)).size for png in row["heat_maps"]] == [(6, 6)] * 2
    page = (out / "tagging.html").read_text()
    assert page.count("<img") >= 3
    assert "cut short or damaged" in page


@pytest.mark.usefixtures("in_process")
def test_sidecars_only_where_asked_and_never_over_anything_else(
    checkpoint: Path, album: Path, tmp_path: Path, make_image
) -> None:
    images = sorted(path for path in album.rglob("*") if path.is_file())
    tag(config_for(checkpoint, album, tmp_path / "out"))
    assert sorted(path for path in album.rglob("*") if path.is_file()) == images
    config = config_for(checkpoint, album, tmp_path / "beside", format="sidecar")
    tag(config)
    for row in tagged_rows(tmp_path / "beside"):
        assert json.loads((album / f"{row['uri']}.json").read_text()) == row
    assert len(list(album.rglob("*.json"))) == 16
    assert tag(config)["rows"] == 16  # the sidecars are no keys of their own
    make_image(9, 90, 90).save(album / "cat" / "new.jpg")
    (album / "cat" / "new.jpg.json").write_text('{"mine": true}')
    with pytest.raises(StorageError, match=r"new\.jpg\.json: not written by tag\.py, so it is not overwritten"):
        tag(config)
    assert (album / "cat" / "new.jpg.json").read_text() == '{"mine": true}'
    with pytest.raises(ConfigError, match="are not files"):
        config_for(checkpoint, album, tmp_path / "beside", format="sidecar", corpus="webdataset")


@pytest.mark.usefixtures("in_process")
def test_shards_tars_and_tables_are_inputs_too(checkpoint: Path, album: Path, tmp_path: Path) -> None:
    preprocess(PreprocessConfig(corpus="folder", images=str(album), out=str(tmp_path / "shards"), rows_per_shard=5))
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        for path in sorted(album.rglob("*.jpg")):
            tar.add(path, arcname=f"{path.parent.name}_{path.name}")
    (tmp_path / "tars").mkdir()
    (tmp_path / "images.tar").rename(tmp_path / "tars" / "images.tar")
    tag(config_for(checkpoint, album, tmp_path / "files"))
    by_name = {Path(row["uri"]).name: row for row in tagged_rows(tmp_path / "files")}
    for corpus, images in (("shards", "shards"), ("webdataset", "tars"), ("hugging_face", "shards/shards")):
        config = config_for(checkpoint, tmp_path / images, tmp_path / f"{corpus} tags", corpus=corpus)
        manifest = tag(config)
        rows = tagged_rows(tmp_path / f"{corpus} tags")
        assert manifest["rows"] == len(rows) >= 12
        if corpus == "webdataset":
            for row in rows:
                name = row["uri"].rpartition("_")[2]
                assert row.get("error") == by_name[name].get("error")
                assert [t["label"] for t in row["tags"]] == [t["label"] for t in by_name[name]["tags"]]
        else:
            assert all(len(row["tags"]) == 5 for row in rows)
        assert tag(config) == manifest


@pytest.mark.usefixtures("in_process")
def test_images_that_could_not_be_reached_are_tagged_again_where_asked(
    checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    names = [f"cat/0{number}.jpg" for number in range(3)] + [f"dog/0{number}.jpg" for number in range(6, 9)]
    cells = [{"bytes": None, "path": name} for name in names]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(cells, kind)}), images / "table.parquet")
    (images / "dog" / "07.jpg").rename(tmp_path / "kept")
    config = config_for(checkpoint, images, tmp_path / "out", corpus="hugging_face", rows_per_shard=3)
    manifest = tag(config)
    assert manifest["errors"] == {"unreachable": 1}
    (tmp_path / "kept").rename(images / "dog" / "07.jpg")
    assert tag(config) == manifest
    assert tag(config, retry_failed=True)["errors"] == {}
    assert sorted(path.name for path in (tmp_path / "out" / "tags").iterdir()) == sorted(
        Path(file["name"]).name for file in manifest["files"]
    )
    tag(dataclasses.replace(config, out=str(tmp_path / "fresh")))
    assert tagged_rows(tmp_path / "out") == tagged_rows(tmp_path / "fresh")


@pytest.mark.usefixtures("in_process")
def test_thousands_of_labels(checkpoint: Path, album: Path, tmp_path: Path) -> None:
    words = [f"thing {number}" for number in range(3000)]
    (tmp_path / "words.txt").write_text("\n".join(words) + "\n")
    tag(config_for(checkpoint, album, tmp_path / "out", vocabulary=str(tmp_path / "words.txt"), local_candidates=20))
    tagger = Tagger.load(str(checkpoint), local_candidates=20)
    asked = Vocabulary.load(str(tmp_path / "words.txt"))
    for row in tagged_rows(tmp_path / "out"):
        (tags,) = tagger.tag([(album / row["uri"]).read_bytes()], asked)
        assert tags.labels == [item["label"] for item in row["tags"]]
        assert tags.scores == pytest.approx([item["score"] for item in row["tags"]], abs=1e-5)


@pytest.mark.usefixtures("in_process")
def test_hostile_files_all_have_their_row(checkpoint: Path, tmp_path: Path, make_image, encoded) -> None:
    drawn = [encoded(make_image(seed, 400, 300)) for seed in range(3)]
    files = list(hostile(drawn, 150, seed=2))
    (tmp_path / "in").mkdir()
    odd = [
        " ",
        "a b",
        "ü ö",
        "plus+",
        "per%20cent",
        "new\nline",
        "quote'\"",
        "#1",
        "x.tar#y",
        "emoji 🦓",
        "a.parquet#1",
    ]
    for number, file in enumerate(files):
        (tmp_path / "in" / f"{number:03d}{odd[number % len(odd)]}").write_bytes(file.data)
    (tmp_path / "in" / os.fsdecode(b"not \xff utf-8.jpg")).write_bytes(drawn[0])
    with (tmp_path / "in" / "huge").open("wb") as huge:
        huge.truncate(5_000_000_000)
    manifest = tag(config_for(checkpoint, tmp_path / "in", tmp_path / "out", rows_per_shard=40))
    rows = {row["uri"]: row for row in tagged_rows(tmp_path / "out")}
    assert manifest["rows"] == len(rows) == 152
    assert rows["huge"]["error"] == "unreachable"
    assert (rows["huge"]["size"], rows["huge"]["tags"]) == (5_000_000_000, [])
    assert {row["error"] for row in rows.values() if "error" in row} <= set(REASONS)
    for number, file in enumerate(files):
        row = rows[f"{number:03d}{odd[number % len(odd)]}"]
        # hostile.py takes fewer pixels for too many, and means to store a JPEG
        may_be_good = file.expected in ("either", "good", "too_many_pixels") or file.kind == "too long for a JPEG"
        assert may_be_good or "error" in row, file.kind


@pytest.mark.usefixtures("in_process")
def test_a_dry_run_writes_nothing(checkpoint: Path, album: Path, tmp_path: Path) -> None:
    config = config_for(checkpoint, album, tmp_path / "out")
    told = dry_run(config, Resources(num_workers=2))
    assert told.startswith("16 keys in 4 ranges; 4 to work on\nat most 16 images to tag: about 0 min with 2 workers")
    assert not (tmp_path / "out").exists()
    tag(config)
    before = fingerprint(tmp_path / "out")
    assert dry_run(config) == "16 keys in 4 ranges; 0 to work on"
    assert fingerprint(tmp_path / "out") == before


def test_batches_and_processes_change_no_tag(checkpoint: Path, album: Path, tmp_path: Path) -> None:
    """Scores to 1e-5, whatever the batch; the same bytes where only workers or tasks that decode are more."""
    with partitions_here():
        tag(config_for(checkpoint, album, tmp_path / "plain"))
        for batch_size in (1, 3):
            tag(config_for(checkpoint, album, tmp_path / f"{batch_size}", batch_size=batch_size))
    for batch_size in (1, 3):
        assert close(tagged_rows(tmp_path / f"{batch_size}"), tagged_rows(tmp_path / "plain"))
    tag(config_for(checkpoint, album, tmp_path / "more"), Resources(num_workers=2, min_workers=1), decode_tasks=2)
    assert fingerprint(tmp_path / "more") == fingerprint(tmp_path / "plain")


def test_a_worker_that_loads_another_model_than_planned_stops_the_run_with_one_line(
    checkpoint: Path, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself would pass on only the text of an error in a worker's constructor, three times."""
    place = Path(shutil.copytree(checkpoint, tmp_path / "model" / "checkpoint"))
    other = untrained_checkpoint(tmp_path / "other" / "checkpoint", seed=1)
    connect = tag_module._connect

    def connect_then_replace(*arguments: Any) -> None:
        connect(*arguments)
        place.rename(tmp_path / "planned")
        other.rename(place)

    monkeypatch.setattr(tag_module, "_connect", connect_then_replace)
    hashes = [checkpoint_version(str(folder))[:12] for folder in (other, place)]
    with pytest.raises(CheckpointError) as caught:
        tag(config_for(place, album, tmp_path / "out"))
    text = (
        f"{place}: holds model {hashes[0]}, the plan of {tmp_path / 'out'} has {hashes[1]}; restore the planned model"
    )
    assert str(caught.value) == f"{text}, or choose another --out"
    assert not (tmp_path / "out" / "manifest.json").exists()
