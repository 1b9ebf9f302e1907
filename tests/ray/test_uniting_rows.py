"""Labels of images that occur more than once, and corpora without labels, through the whole of preprocessing."""

import dataclasses
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sigrl_core.config import PreprocessConfig
from sigrl_core.corpora import image_files
from sigrl_core.data.shards import ShardFolder
from sigrl_core.errors import CorpusError
from sigrl_core.io import storage
from sigrl_core.io.resumable_job import ResumableJob
from sigrl_core.on_ray.preprocess import preprocess
from tests.conftest import fingerprint
from tests.in_process import call

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("in_process")]

Row = dict[str, Any]


def config_of(folder: Path, rows: list[Row], name: str = "out", **changes: Any) -> PreprocessConfig:
    """Rows of a JSONL file; images are below `folder`."""
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = PreprocessConfig(
        corpus="jsonl",
        images=str(folder / "images"),
        annotations=str(folder / f"{name}.jsonl"),
        out=str(folder / name),
        short_side=32,
        rows_per_shard=2,
        validation_fraction=0.0,
    )
    return dataclasses.replace(config, **changes)


def states(out: str | Path) -> dict[str, dict[str, int]]:
    """uri -> label -> state; labels that are unknown are left out."""
    folder = ShardFolder.open(str(out))
    folder.verify()
    result = {}
    for index in range(len(folder.shard_rows)):
        for row in folder.read_shard(index).to_pylist():
            values = np.frombuffer(row["label_states"], np.int8).tolist()
            named = zip(folder.vocabulary.names, values, strict=True)
            result[row["uri"]] = {name: state for name, state in named if state}
    return result


def conflicts(out: str | Path) -> list[Row]:
    return pq.read_table(Path(out) / "conflicts.parquet").to_pylist()


@pytest.fixture
def folder(tmp_path: Path, make_image) -> Path:
    (tmp_path / "images").mkdir()
    for number, name in enumerate("abcdef"):
        make_image(number, 60, 40).save(tmp_path / "images" / f"{name}.jpg")
    return tmp_path


def test_one_row_a_label(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Rows of one uri, in one partition and in several, are one image with all labels, read once a partition."""
    rows = [("a", "cat"), ("a", "dog"), ("b", "cat"), ("a", "bird"), ("c", "dog"), ("b", "dog")]
    reads: list[str] = []
    read = storage.read_bytes
    monkeypatch.setattr(image_files.storage, "read_bytes", lambda uri, *more: (reads.append(uri), read(uri, *more))[1])
    config = config_of(folder, [{"uri": f"{name}.jpg", "labels": [label]} for name, label in rows])
    manifest = preprocess(config)
    assert states(config.out) == {
        "a.jpg": {"cat": 1, "dog": 1, "bird": 1},
        "b.jpg": {"cat": 1, "dog": 1, "bird": -1},
        "c.jpg": {"cat": -1, "dog": 1, "bird": -1},
    }
    counts = {key: manifest[key] for key in ("rows_in", "rows_out", "quarantined", "duplicates", "united", "conflicts")}
    assert counts == {"rows_in": 6, "rows_out": 3, "quarantined": 0, "duplicates": 3, "united": 2, "conflicts": 0}
    assert manifest["label_counts"]["bird"] == {"present": 1, "absent": 2, "unknown": 0}
    assert sum(uri.endswith(".jpg") for uri in reads) == 5  # a.jpg twice in the first partition
    assert "images whose labels were united from several rows or copies: 2\n" in capsys.readouterr().err


def test_equal_bytes_under_other_names(folder: Path) -> None:
    shutil.copy(folder / "images/a.jpg", folder / "images/copy of a.jpg")
    shutil.copy(folder / "images/b.jpg", folder / "images/copy of b.jpg")
    rows = [
        {"uri": "a.jpg", "labels": ["cat"]},
        {"uri": "b.jpg", "labels": None},  # not annotated
        {"uri": "c.jpg", "labels": ["dog"]},
        {"uri": "copy of b.jpg", "labels": ["bird"], "negatives": ["cat"]},
        {"uri": "copy of a.jpg", "labels": ["dog"]},
    ]
    config = config_of(folder, rows)
    preprocess(config)
    assert states(config.out) == {
        "a.jpg": {"cat": 1, "dog": 1, "bird": -1},
        "b.jpg": {"bird": 1, "cat": -1},
        "c.jpg": {"cat": -1, "dog": 1, "bird": -1},
    }


def test_a_conflict_is_unknown_and_listed_with_both_rows(folder: Path, capsys) -> None:
    shutil.copy(folder / "images/a.jpg", folder / "images/copy of a.jpg")
    rows = [
        {"uri": "a.jpg", "labels": ["cat"], "negatives": ["bird"]},
        {"uri": "b.jpg", "labels": ["dog"]},
        {"uri": "copy of a.jpg", "labels": ["dog"], "negatives": ["cat"]},
        {"uri": "copy of a.jpg", "labels": ["dog"]},  # cat is not listed: no conflict
    ]
    config = config_of(folder, rows)
    manifest = preprocess(config)
    assert states(config.out)["a.jpg"] == {"dog": 1, "bird": -1}
    assert manifest["conflicts"] == 1
    (row,) = conflicts(config.out)
    sha256 = row.pop("sha256")
    assert row == {
        "uri": "a.jpg",
        "label": "cat",
        "present_uri": "a.jpg",
        "present_row": 0,
        "absent_uri": "copy of a.jpg",
        "absent_row": 2,
    }
    assert sha256 == pq.read_table(Path(config.out) / "shards/00000.parquet")["sha256"][0].as_py()
    told = capsys.readouterr().err
    assert "unknown: 1, such as 'cat', present for a.jpg (row 0), absent for copy of a.jpg (row 2); " in told


def test_near_duplicates_are_other_images(folder: Path) -> None:
    image = Image.open(folder / "images/a.jpg")
    image.save(folder / "images/smaller.jpg", quality=60)
    rows = [{"uri": "a.jpg", "labels": ["cat"]}, {"uri": "smaller.jpg", "labels": ["dog"]}]
    config = config_of(folder, rows, near_duplicates=6)
    assert preprocess(config)["duplicates"] == 1
    assert states(config.out) == {"a.jpg": {"cat": 1, "dog": -1}}
    shutil.copy(folder / "images/smaller.jpg", folder / "images/smaller again.jpg")
    more = config_of(folder, [*rows, {"uri": "smaller again.jpg", "labels": ["bird"]}], "more", near_duplicates=6)
    assert preprocess(more)["duplicates"] == 2
    assert states(more.out) == {"a.jpg": {"cat": 1, "dog": -1, "bird": -1}}


def test_one_positive_is_chosen_of_the_united_labels(folder: Path) -> None:
    names, labels = "abcdef", ["cat", "dog", "bird"]
    long = [{"uri": f"{name}.jpg", "labels": [label]} for label in labels for name in names]
    wide = [{"uri": f"{name}.jpg", "labels": labels} for name in names]
    outs = []
    for name, rows in (("long", long), ("wide", wide)):
        config = config_of(folder, rows, name, label_policy="single-positive", validation_fraction=0.3)
        preprocess(config)
        outs.append(states(config.out))
    assert outs[0] == outs[1]
    assert {len(row) for row in outs[0].values()} == {1, 3}  # training and validation


@pytest.mark.parametrize("seed", range(3))
def test_split_over_rows_and_copies_a_corpus_has_the_same_states(folder: Path, seed: int) -> None:
    """A random corpus with one row an image, and the same with each row cut into several, in any order."""
    rng = random.Random(seed)
    whole: list[Row] = []
    for name in "abcdef":
        states_of_labels = {label: rng.choice(["labels", "negatives", None]) for label in ("cat", "dog", "bird")}
        row: Row = {"uri": f"{name}.jpg", "labels": [], "negatives": []}
        for label, key in states_of_labels.items():
            if key:
                row[key].append(label)
        if rng.random() < 0.5:
            del row["negatives"]
        whole.append(row)
        shutil.copy(folder / f"images/{name}.jpg", folder / f"images/{name} again.jpg")
    cut: list[Row] = []
    for row in whole:
        for key in {"labels", "negatives"} & set(row):
            empty = {other: [] for other in ("labels", "negatives") if other in row}
            cut += [{"uri": row["uri"], **empty, key: [label]} for label in row[key]]
        cut.append({**row, "labels": [], **({"negatives": []} if "negatives" in row else {})})
    rng.shuffle(cut)
    for row in cut:
        if rng.random() < 0.4:
            row["uri"] = row["uri"].replace(".jpg", " again.jpg")
    (folder / "v.txt").write_text("cat\ndog\nbird\n")
    outs = []
    for name, rows in (("whole", whole), ("cut", cut)):
        config = config_of(folder, rows, name, vocabulary=str(folder / "v.txt"), no_labels=True)
        manifest = preprocess(config)
        assert manifest["rows_in"] == manifest["rows_out"] + manifest["quarantined"] + manifest["duplicates"]
        outs.append({uri.replace(" again", ""): row for uri, row in states(config.out).items()})
    assert outs[0] == outs[1]


def test_labels_are_united_again_when_an_image_is_reached(folder: Path) -> None:
    """The folder is then as if the image had been there, and again when its labels are no longer needed."""
    shutil.copy(folder / "images/a.jpg", folder / "images/copy.jpg")
    rows = [
        {"uri": "a.jpg", "labels": ["cat"], "negatives": ["sofa"]},
        {"uri": "b.jpg", "labels": ["dog"]},
        {"uri": "c.jpg", "labels": ["sofa"]},
        {"uri": "copy.jpg", "labels": ["bird", "sofa"]},
        {"uri": "d.jpg", "labels": ["dog"]},
    ]
    whole = config_of(folder, rows, "whole")
    preprocess(whole)
    config = dataclasses.replace(whole, out=str(folder / "out"))
    os.rename(folder / "images/copy.jpg", folder / "kept")
    assert preprocess(config)["united"] == 0
    assert states(config.out)["a.jpg"] == {"cat": 1, "sofa": -1}
    os.rename(folder / "kept", folder / "images/copy.jpg")
    after = preprocess(config, retry_failed=True)
    assert (after["united"], after["conflicts"]) == (1, 1)
    assert states(config.out)["a.jpg"] == {"cat": 1, "bird": 1, "dog": -1}
    assert fingerprint(Path(config.out)) == fingerprint(Path(whole.out))
    os.rename(folder / "images/copy.jpg", folder / "kept")
    ResumableJob(config.out).reopen([part for part in _parts(config) if part.index == 1])
    assert preprocess(config)["united"] == 0
    assert states(config.out)["a.jpg"] == {"cat": 1, "sofa": -1}
    assert conflicts(config.out) == []


def _parts(config: PreprocessConfig):
    from sigrl_core.corpora.listing_file import list_partitions

    return list_partitions(f"{config.out}/listing.parquet")


def test_a_run_that_stops_after_some_shards_were_moved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards with and without united labels are at their final paths already."""
    from sigrl_core.on_ray import preprocess as module

    shutil.copy(folder / "images/a.jpg", folder / "images/copy.jpg")
    uris = ["a.jpg", "b.jpg", "c.jpg", "copy.jpg", "d.jpg", "e.jpg", "f.jpg", "f.jpg"]
    rows = [{"uri": uri, "labels": [f"label {n % 3}"]} for n, uri in enumerate(uris)]
    whole = config_of(folder, rows, "whole")
    preprocess(whole)
    config = dataclasses.replace(whole, out=str(folder / "out"))
    with monkeypatch.context() as patched:
        patched.setattr(module, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            preprocess(config)
    for staged in Path(config.out).glob("work/shards/*"):
        staged.unlink()  # as if all of them had been moved
    preprocess(config)
    assert fingerprint(Path(config.out)) == fingerprint(Path(whole.out))


def test_records_of_version_0_1(folder: Path) -> None:
    """They do not have the positions of usable rows."""
    shutil.copy(folder / "images/a.jpg", folder / "images/copy.jpg")
    uris = ["missing.jpg", "a.jpg", "missing.jpg", "copy.jpg", "b.jpg"]
    rows = [{"uri": uri, "labels": [f"label {n}"]} for n, uri in enumerate(uris)]
    config = config_of(folder, rows)
    preprocess(config)
    expected = states(config.out)
    assert expected["a.jpg"] == {f"label {n}": 1 if n in (1, 3) else -1 for n in range(5)}
    for path in Path(config.out).glob("parts/*.json"):
        path.write_text(
            json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "rows"})
        )
    (Path(config.out) / "manifest.json").unlink()
    preprocess(config)
    assert states(config.out) == expected


def test_copies_in_the_folders_of_several_classes(tmp_path: Path, make_image) -> None:
    for name in ("cat/1.jpg", "dog/1.jpg", "dog/2.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        make_image(int(name[-5]), 60, 40).save(tmp_path / "in" / name)
    preprocess(PreprocessConfig(corpus="folder", images=str(tmp_path / "in"), out=str(tmp_path / "out"), short_side=32))
    assert states(tmp_path / "out") == {"cat/1.jpg": {"cat": 1, "dog": 1}, "dog/2.jpg": {"cat": -1, "dog": 1}}


def test_a_corpus_without_labels_is_refused_unless_intended(folder: Path, tmp_path: Path) -> None:
    config = PreprocessConfig(corpus="folder", images=str(folder / "images"), out=str(tmp_path / "out"), short_side=32)
    with pytest.raises(CorpusError, match=r"none of 6 images has a label .*found no folders.*; .* add --no-labels"):
        preprocess(config)
    assert not Path(config.out).exists()
    flags = ["--corpus", "folder", "--images", config.images, "--out", config.out, "--short-side", "32"]
    refused = call("preprocess.py", *flags)
    assert refused.returncode == 1
    assert refused.stderr.count("error:") == 1
    assert call("preprocess.py", *flags, "--no-labels").returncode == 0
    assert preprocess(config)["num_labels"] == 0  # a finished folder needs no confirmation
    with pytest.raises(CorpusError, match=r"none of 1 images has a label \(a key of labels .*found uri, labels\)"):
        preprocess(config_of(folder, [{"uri": "a.jpg", "labels": []}], out=str(tmp_path / "jsonl")))


def test_files_that_are_not_taken_are_counted(folder: Path, capsys) -> None:
    images = folder / "images"
    (images / "cat").mkdir()
    for name in ("a.jfif", "no_ending", "photo.jpg_large", "takeout.HEIC"):
        os.rename(images / f"{'abcd'[len(list((images / 'cat').iterdir()))]}.jpg", images / "cat" / name)
    for name, data in {
        "labels.csv": b"",
        "notes.txt": b"",
        "more.TXT": b"",
        "page.jfif": b"<html>",
        "odd": b"x",
    }.items():
        (images / name).write_bytes(data)
    out = folder / "out"
    manifest = preprocess(PreprocessConfig(corpus="folder", images=str(images), out=str(out), short_side=32))
    assert set(states(out)) == {
        *("cat/a.jfif", "cat/no_ending", "cat/photo.jpg_large", "cat/takeout.HEIC", "e.jpg", "f.jpg")
    }
    expected = {".txt": 2, ".csv": 1, ".jfif (html)": 1, "without ending (not an image)": 1}
    assert manifest["left_out"] == expected
    told = capsys.readouterr().err
    assert "left out: 2 .txt, 1 .csv, 1 without ending (not an image), 1 .jfif (html)" in told


CASES = Path(__file__).parents[1] / "fixtures" / "annotation_cases"
BOTH, DOG = {"cat": 1, "dog": 1}, {"cat": -1, "dog": 1}


@pytest.mark.parametrize(
    ("corpus", "images", "annotations", "expected"),
    [
        ("csv", "list/images", "list/csv_long.csv", {"a.jpg": BOTH, "b.jpg": DOG}),
        ("jsonl", "list/images", "list/jsonl_long.jsonl", {"a.jpg": BOTH, "b.jpg": DOG}),
        ("parquet", "list/images", "list/pq_long.parquet", {"a.jpg": BOTH, "b.jpg": DOG}),
        ("coco", "coco_twice/images", "coco_twice/a.json", {"a.jpg": BOTH, "b.jpg": {"cat": -1, "dog": -1}}),
        ("folder", "folder_multi", None, {"cat/1.jpg": BOTH, "dog/2.jpg": DOG}),
        (
            *("hugging_face", "hf/long", None),
            {"#0": {"cat": 1, "dog": 1, "bird": -1}, "#2": {"cat": -1, "dog": 1, "bird": -1}},
        ),
    ],
)
def test_labels_of_one_image_in_files_of_other_tools(
    corpus: str, images: str, annotations: str | None, expected: dict[str, dict[str, int]], tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    where = annotations and str(CASES / annotations)
    preprocess(PreprocessConfig(corpus=corpus, images=str(CASES / images), annotations=where, out=out, short_side=32))
    found = {uri[uri.find("#") :] if "#" in uri else uri: state for uri, state in states(out).items()}
    assert found == expected
    manifest = ShardFolder.open(out).manifest
    assert (manifest["conflicts"], manifest["quarantined"]) == (0, 0)
