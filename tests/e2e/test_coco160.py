"""Real photographs with bad files among them: `preprocess.py` keeps the good ones and names the others."""

import json
import shutil
import struct
import zlib
from pathlib import Path

import pytest

from sigrl_core.data.shards import ShardFolder

pytestmark = pytest.mark.e2e

PIPELINE = Path(__file__).parents[2] / "pipelines" / "preprocess.py"


def bomb() -> bytes:
    """A valid PNG of 20,000 x 20,000 black pixels in some 50 KB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(2_501 * 20_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


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
    annotations = ["--annotations", spoiled / "instances.json"] if corpus == "coco" else ["--no-labels"]
    arguments = ["--corpus", corpus, "--images", spoiled / "pictures", *annotations, "--out", tmp_path / "shards"]
    done = command(PIPELINE, *arguments)
    assert done.returncode == 0, done.stderr
    assert "82 rows in: 79 good, 3 quarantined, 0 duplicates" in done.stdout
    quarantine = ShardFolder.open(str(tmp_path / "shards")).read_quarantine()
    assert sorted(quarantine["reason"].to_pylist()) == ["not_an_image", "too_many_pixels", "truncated"]
    if corpus == "coco":
        checked = command("-m", "sigrl_core.data.shards", tmp_path / "shards")
        assert checked.returncode == 0
        assert "rows_out 79" in checked.stdout
        page = tmp_path / "shards" / "dataset.html"
        written, content = page.stat().st_mtime_ns, page.read_bytes()
        assert b"1 file cut short or damaged" in content
        again = command(PIPELINE, *arguments)
        assert again.returncode == 0
        assert again.stdout == done.stdout
        assert page.stat().st_mtime_ns == written
        page.unlink()  # as in a folder made before there were pages
        assert command(PIPELINE, *arguments).stdout == done.stdout
        assert page.read_bytes() == content
