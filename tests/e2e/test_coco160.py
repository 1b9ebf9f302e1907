"""`preprocess.py` on real photographs, called as a user calls it, from a folder that is not the repository's."""

import json
import shutil
import struct
import zlib
from pathlib import Path

import pytest

from sigrl_core.records import ShardFolder

pytestmark = pytest.mark.e2e

PIPELINE = Path(__file__).parents[2] / "pipelines" / "preprocess.py"


def bomb() -> bytes:
    """A valid PNG of 20,000 x 20,000 black pixels in some 50 KB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(2_501 * 20_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_coco(coco160: Path, tmp_path: Path, command, split: str) -> None:
    annotations = coco160 / "annotations" / f"instances_{split}.json"
    arguments = ["--corpus", "coco", "--images", coco160 / split, "--annotations", annotations, "--out", "shards"]
    done = command(PIPELINE, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("corpus = coco\n")
    lines = done.stdout.splitlines()
    assert lines[-2:] == ["80 rows in: 80 good, 0 quarantined, 0 duplicates; 80 labels, 1 shards", "shards: shards"]
    assert "Traceback" not in done.stderr
    shards = ShardFolder.open(str(tmp_path / "shards"))
    shards.verify()
    assert shards.vocabulary.names[:3] == ["person", "bicycle", "car"]
    content = json.loads(annotations.read_text())
    marked = {(row["image_id"], row["category_id"]) for row in content["annotations"]}
    assert sum(counts["present"] for counts in shards.manifest["label_counts"].values()) == len(marked)
    table = shards.read_shard(0)
    assert min(table["width"].to_pylist() + table["height"].to_pylist()) <= 256
    assert table["uri"].to_pylist() == [row["file_name"] for row in content["images"]]


@pytest.fixture(scope="module")
def spoiled(coco160: Path, tmp_path_factory) -> Path:
    """The training photographs, one of them cut short, with a text file named .jpg and a bomb beside them."""
    root = tmp_path_factory.mktemp("spoiled")
    shutil.copytree(coco160 / "train2017", root / "pictures", copy_function=shutil.copyfile)
    (root / "pictures").chmod(0o755)
    content = json.loads((coco160 / "annotations" / "instances_train2017.json").read_text())
    first = root / "pictures" / content["images"][0]["file_name"]
    first.write_bytes(first.read_bytes()[:20_000])
    (root / "pictures" / "note.jpg").write_text("this is text\n")
    (root / "pictures" / "bomb.png").write_bytes(bomb())
    content["images"] += [{"id": 1, "file_name": "note.jpg"}, {"id": 2, "file_name": "bomb.png"}]
    (root / "instances.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("corpus", ["coco", "folder"])
def test_bad_files_are_quarantined(spoiled: Path, tmp_path: Path, command, corpus: str) -> None:
    annotations = ["--annotations", spoiled / "instances.json"] if corpus == "coco" else []
    arguments = ["--corpus", corpus, "--images", spoiled / "pictures", *annotations, "--out", tmp_path / "shards"]
    done = command(PIPELINE, *arguments)
    assert done.returncode == 0, done.stderr
    assert "82 rows in: 79 good, 3 quarantined, 0 duplicates" in done.stdout
    quarantine = ShardFolder.open(str(tmp_path / "shards")).read_quarantine()
    assert sorted(quarantine["reason"].to_pylist()) == ["not_an_image", "too_many_pixels", "truncated"]
    checked = command("-m", "sigrl_core.records", tmp_path / "shards")
    assert checked.returncode == 0
    assert "rows_out 79" in checked.stdout
    again = command(PIPELINE, *arguments)
    assert again.returncode == 0
    assert again.stdout == done.stdout


def test_errors_are_one_line(tmp_path: Path, command) -> None:
    (tmp_path / "empty").mkdir()
    cases = {
        ("--corpus", "folder", "--images", tmp_path / "missing"): "no such folder of pictures",
        ("--corpus", "folder", "--images", tmp_path / "empty"): "no image files",
        ("--corpus", "voc", "--images", tmp_path / "empty"): "known are folder, jsonl, coco",
        ("--corpus", "coco", "--images", tmp_path / "empty"): "add --annotations",
        ("--corpus", "folder", "--images", tmp_path / "empty", "--quality", "0"): "quality is 0",
        ("--corpus", "folder", "--images", "http://host/pictures"): "scheme http:// is not known",
    }
    for arguments, message in cases.items():
        done = command(PIPELINE, *arguments, "--out", tmp_path / "out")
        assert done.returncode == 1, (arguments, done)
        assert message in done.stderr
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
