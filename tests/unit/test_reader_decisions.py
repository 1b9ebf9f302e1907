"""What readers decide by the data itself: class numbers or one value per class, captions or labels, masks, groups."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from sigrl_core.corpora import ListedImage, open_corpus
from sigrl_core.corpora.number_lists import NumberLists
from sigrl_core.errors import CorpusError

pytestmark = pytest.mark.unit

THREE = ("cat", "dog", "bird")


def meaning(lists: list, classes: tuple[str, ...] | None = None, are_declared: bool = False) -> str | None:
    rows = NumberLists(classes, None, are_declared).resolve(iter(lists), lambda row: row, "a.parquet")
    return [decided.meaning for _, decided in rows][-1]


@pytest.mark.parametrize(
    ("lists", "classes", "are_declared", "expected"),
    [
        ([[1, 0, 1], [0, 0, 0]], THREE, False, "multi-hot"),
        ([[1, 0, 1], [0, 0, 0]], None, False, "multi-hot"),
        ([[0, 1], [1, 1]], None, False, "multi-hot"),
        ([[1.0, 0.0]], None, False, "multi-hot"),
        ([[True, False]], None, False, "multi-hot"),
        ([[0, 2], [1, 0]], THREE, False, "classes"),
        ([[0, 1], [1]], THREE, False, "classes"),
        ([[0, 1], [1, 0]], THREE, False, "classes"),  # three classes have three values
        ([[1], [0]], None, False, "classes"),
        ([[0, 1], [1, 0]], ("cat", "dog"), True, "classes"),  # by the schema, and no number is repeated
        ([None, 1, ["cat"]], None, False, None),  # no list of numbers
        ([[0, 1], [1, 0]], None, False, "refused"),
        ([[0, 1], [1, 0]], ("cat", "dog"), False, "refused"),
        ([[1, 0, 1]], THREE, True, "refused"),  # the schema says class numbers, the numbers do not
        ([[1, 0, 1]], ("cat", "dog"), False, "refused"),
    ],
)
def test_meaning_of_lists(lists: list, classes, are_declared: bool, expected: str | None) -> None:
    if expected != "refused":
        assert meaning(lists, classes, are_declared) == expected
        return
    with pytest.raises(CorpusError, match="add --label-numbers classes or --label-numbers multi-hot"):
        meaning(lists, classes, are_declared)


def test_at_most_1000_rows_are_held_until_the_meaning_is_decided() -> None:
    read = 0

    def rows():
        nonlocal read
        for number in range(5000):
            read += 1
            yield None if number < 2000 else [1, 0, 1]

    resolved = NumberLists(THREE).resolve(rows(), lambda row: row, "a.parquet")
    assert next(resolved)[0] is None
    assert read == 1  # rows without a list need no decision
    assert [row for row, _ in (next(resolved) for _ in range(2000))][-1] == [1, 0, 1]
    assert read == 3000


def test_rows_after_the_first_1000_must_have_the_same_form() -> None:
    lists = [*([[1, 0, 1]] * 1000), [0, 2]]
    row, decided = list(NumberLists(THREE).resolve(iter(lists), lambda row: row, "a"))[-1]
    with pytest.raises(CorpusError, match=r"row 1000: found \[0, 2\], expected 3 numbers 0 or 1, one per class"):
        decided.read(row, "row 1000")


def write_tar(folder: Path, files: dict[str, bytes | dict]) -> str:
    with tarfile.open(folder / "0.tar", "w") as tar:
        for name, content in files.items():
            data = json.dumps(content).encode() if isinstance(content, dict) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(folder)


def texts(folder: Path, lines: list[str]) -> str:
    files: dict[str, bytes | dict] = {}
    for number, line in enumerate(lines):
        files |= {f"{number:04d}.jpg": b"x", f"{number:04d}.txt": line.encode()}
    return write_tar(folder, files)


CAPTION = "a dog runs along the beach"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["cat", "dog\ncat"], "labels"),
        (["golden retriever", "cat"] * 20, "labels"),
        ([CAPTION, "two cats on one grey sofa"], "captions"),
        ([f"{CAPTION} number {number}" for number in range(40)], "captions"),
        ([f"photo {number}" for number in range(40)], "refused"),
        ([CAPTION] * 40, "refused"),
    ],
)
def test_captions_of_a_webdataset(tmp_path, capsys, lines: list[str], expected: str) -> None:
    images = texts(tmp_path, lines)
    if expected == "refused":
        with pytest.raises(CorpusError, match=r"may be labels or captions .* add --label-field txt if they are labels"):
            list(open_corpus("webdataset", images).images)
    else:
        rows = list(open_corpus("webdataset", images).images)
        labels = [tuple(line.split("\n")) for line in lines]
        assert [row.labels for row in rows] == (labels if expected == "labels" else [None] * len(lines))
        assert ("captions are not read as labels" in capsys.readouterr().err) == (expected == "captions")
    first = next(iter(open_corpus("webdataset", images, label_field="txt").images))
    assert first.labels == tuple(lines[0].split("\n"))


def test_images_with_longer_endings(tmp_path, capsys) -> None:
    """A mask beside an image is left out and counted; views of a sample share its labels; tag.py lists all."""
    images = write_tar(
        tmp_path,
        {
            "1.jpg": b"x",
            "1.json": {"labels": ["cat"]},
            "1.seg.png": b"x",
            "2.left.jpg": b"x",
            "2.right.jpg": b"x",
            "2.json": {"labels": ["dog"]},
            "3.05.jpg": b"x",
            "3.05.json": {"labels": ["bird"]},
        },
    )
    rows = list(open_corpus("webdataset", images).images)
    expected = [("1.jpg", "cat"), ("2.left.jpg", "dog"), ("2.right.jpg", "dog"), ("3.05.jpg", "bird")]
    assert [(row.uri, row.labels) for row in rows] == [(f"0.tar#{name}", (label,)) for name, label in expected]
    assert "1 images with longer endings are left out" in capsys.readouterr().err
    assert len(list(open_corpus("webdataset", images, with_labels=False).images)) == 5


def test_arrays_without_class_names_are_reported(tmp_path, capsys) -> None:
    file = io.BytesIO()
    np.save(file, np.ones(3))
    rows = list(open_corpus("webdataset", write_tar(tmp_path, {"1.jpg": b"x", "1.npy": file.getvalue()})).images)
    assert [row.labels for row in rows] == [None]
    assert "1 .npy files are not read" in capsys.readouterr().err


def test_a_roboflow_group_is_no_label(tmp_path, capsys) -> None:
    categories = [
        {"id": 0, "name": "animals", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "animals"},
        {"id": 2, "name": "thing", "supercategory": "none"},  # groups nothing, so that it is a label
    ]
    content = {
        "images": [{"id": 5, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 5, "category_id": 1}],
        "categories": categories,
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    listing = open_corpus("coco", str(tmp_path), str(tmp_path / "a.json"))
    assert listing.vocabulary is not None
    assert listing.vocabulary.names == ["cat", "thing"]
    assert "category 0 'animals' is left out" in capsys.readouterr().err
    content["annotations"].append({"image_id": 5, "category_id": 0})
    (tmp_path / "a.json").write_text(json.dumps(content))
    listing = open_corpus("coco", str(tmp_path), str(tmp_path / "a.json"))
    assert list(listing.images) == [ListedImage("a.jpg", ("cat", "animals"))]


def test_a_voc_image_without_xml(tmp_path, capsys) -> None:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\nb\n")
    (tmp_path / "JPEGImages/b.png").write_bytes(b"")
    (tmp_path / "Annotations/a.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    arguments = str(tmp_path / "JPEGImages"), str(tmp_path / "ImageSets/Main/train.txt")
    assert list(open_corpus("voc", *arguments).images) == [ListedImage("a.jpg", ("cat",)), ListedImage("b.png", None)]
    assert "no XML file of 1 of 2 images, for example b.png" in capsys.readouterr().err
    (tmp_path / "Annotations/a.xml").unlink()
    with pytest.raises(CorpusError, match=r"Annotations: no XML file of any image in .*train.txt"):
        open_corpus("voc", *arguments)


def test_damaged_gzip(tmp_path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\x1f\x8b" + bytes(20))
    with pytest.raises(CorpusError, match=r"a.csv: damaged gzip data"):
        open_corpus("csv", str(tmp_path), str(tmp_path / "a.csv"))
