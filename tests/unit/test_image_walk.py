"""Which files below a folder are images, how many of them are opened, and what a corpus without labels has instead."""

import csv
import io
import json
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sigrl_core.corpora import get_corpus, image_walk
from sigrl_core.corpora.image_walk import walk_images
from sigrl_core.data.signatures import SIGNATURE_BYTES

pytestmark = pytest.mark.unit


def test_only_files_of_unknown_endings_are_opened_once(tmp_path: Path, make_image, encoded, monkeypatch) -> None:
    jpeg = encoded(make_image(0))
    for name in ("1.jpg", "2.JPEG", "3.jfif", "4.JPG_large", "5", "6.HEIC"):
        (tmp_path / name).write_bytes(jpeg)
    for name in ("notes.txt", "a.json", "b.parquet", "c.dat", "empty.bin"):
        (tmp_path / name).write_bytes(b"" if name == "empty.bin" else b"text")
    reads, read = [], image_walk.read_first_bytes
    monkeypatch.setattr(
        image_walk, "read_first_bytes", lambda uri, size: reads.append((Path(uri).name, size)) or read(uri, size)
    )
    left_out = Counter[str]()
    taken = [file.path for file in walk_images(str(tmp_path), left_out)]
    assert taken == ["1.jpg", "2.JPEG", "3.jfif", "4.JPG_large", "5", "6.HEIC"]
    assert left_out == {".txt": 1, ".json": 1, ".parquet": 1, ".dat (not an image)": 1, ".bin (empty)": 1}
    assert sorted(reads) == [(name, SIGNATURE_BYTES) for name in ("3.jfif", "4.JPG_large", "5", "6.HEIC", "c.dat")]


@pytest.mark.parametrize("splits", [("train", "val"), ("Train", "test", "valid")])
def test_folders_of_splits_are_not_labels(images: Path, splits: tuple[str, ...], capsys) -> None:
    for split in splits[1:]:
        shutil.copytree(images, images.parent / "all" / split)
    shutil.move(images, images.parent / "all" / splits[0])
    rows = list(get_corpus("folder")(str(images.parent / "all"), None).images)
    assert len(rows) == 12 * len(splits)
    assert all(row.labels == (row.uri.split("/")[1],) for row in rows)
    assert "are taken as splits, not as labels" in capsys.readouterr().err


def test_one_folder_that_is_no_split_makes_all_of_them_labels(images: Path, capsys) -> None:
    (images / "cat").rename(images / "test")
    rows = list(get_corpus("folder")(str(images), None).images)
    assert {row.labels for row in rows} == {("test",), ("dog",)}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("corpus", ["csv", "jsonl", "parquet"])
def test_columns_are_named_where_no_image_has_a_label(corpus: str, tmp_path: Path) -> None:
    where, row = tmp_path / "list", {"uri": "1.jpg", "kind": "cat"}
    if corpus == "csv":
        csv.writer(stream := io.StringIO()).writerows([list(row), list(row.values())])
        where.write_text(stream.getvalue())
    elif corpus == "jsonl":
        where.write_text(json.dumps(row) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist([row]), where)
    listing = get_corpus(corpus)(str(tmp_path), str(where))
    assert [image.labels for image in listing.images] == [None]
    assert listing.describe_source is not None
    noun = "key" if corpus == "jsonl" else "column"
    assert listing.describe_source().startswith(f"a {noun} of labels is one of labels, label, tags")
    assert listing.describe_source().endswith("found uri, kind")
