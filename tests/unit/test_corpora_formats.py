"""Annotation formats of other tools: each reader against what its tool writes, random annotations and damaged files."""

import csv
import io
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigrl_core.corpora import ListedImage, get_corpus, label_states
from sigrl_core.corpora.class_columns import ClassColumns, find_class_columns, read_states
from sigrl_core.corpora.image_files import read_images
from sigrl_core.corpora.listing_file import write_listing
from sigrl_core.data.label_states import ABSENT, PRESENT, UNKNOWN
from sigrl_core.data.signatures import format_of
from sigrl_core.errors import CorpusError, SigrlError
from sigrl_core.labels.vocabulary import Vocabulary
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.unit


# ---- one column per class ----


def test_class_columns() -> None:
    header = ["uri", "cat", " dog", "note", "width", "empty"]
    rows = [["a.jpg", "1", "0.0", "x", "1", ""], ["b.jpg", "", "-1.0", "1", "0", ""]]
    columns = find_class_columns(header, rows)
    assert columns == ClassColumns({"cat": 1, "dog": 2}, UNKNOWN)
    assert read_states(rows[0], columns, "line 2") == (("cat",), None)
    assert read_states(rows[1], columns, "line 3") == (None, None)
    assert read_states(["c.jpg", True, None], columns, "line 4") == (("cat",), ())
    assert read_states(["c.jpg", float("nan"), False], columns, "line 4") == ((), ("dog",))
    with pytest.raises(CorpusError, match=r"line 9: column 'cat' is '2', expected 1, 0, -1 or empty"):
        read_states(["c.jpg", "2", "1"], columns, "line 9")
    assert find_class_columns(["uri", "cat"], [["a", "cat"]]).positions == {}
    assert find_class_columns(["uri", "cat", "dog"], [["1", "0", "1"]], ["uri"]).positions == {"cat": 1, "dog": 2}


def test_minus_one_is_absent_in_a_table_of_1_and_minus_1_alone() -> None:
    columns = find_class_columns(["uri", "cat", "dog"], [["a", 1, -1], ["b", -1, -1]])
    assert columns.minus_one == ABSENT
    assert read_states(["b", -1, -1], columns, "") == ((), None)
    with pytest.raises(CorpusError, match="expected 1, -1 or empty"):
        read_states(["b", 0, -1], columns, "")
    with pytest.raises(CorpusError, match="expected 1, 0 or empty"):
        read_states(["b", 0, -1], columns._replace(minus_one=None), "")


# ---- what the tools write ----


def write(path: Path, content: object) -> Path:
    """Writes a text, bytes, or a value as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def npy_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_azure(tmp_path, read_corpus) -> None:
    write(tmp_path / "images/cats/a.jpg", "")
    store = "azureml://subscriptions/s/resourcegroups/r/workspaces/w/datastores/d/paths/data/cats"
    rows = [
        {"image_url": f"{store}/a.jpg", "label": ["cat", "dog"]},
        {"image_url": f"{store}/b.jpg", "image_details": {"format": "jpg"}, "label": "cat"},
        {"image_url": f"{store}/c.jpg", "label": [{"label": "dog", "topX": 0.1}, {"label": "dog", "topX": 0.2}]},
        {"image_url": f"{store}/d.jpg"},
        {"image_url": f"{store}/e.jpg", "label": []},
    ]
    file = write(tmp_path / "train.jsonl", "\n\n".join(map(json.dumps, rows)))
    assert read_corpus("azure", tmp_path / "images", file)[0] == [
        ListedImage("cats/a.jpg", ("cat", "dog")),
        ListedImage("cats/b.jpg", ("cat",)),
        ListedImage("cats/c.jpg", ("dog",)),
        ListedImage("cats/d.jpg", None),
        ListedImage("cats/e.jpg", ()),
    ]


def test_vertex(tmp_path, read_corpus) -> None:
    rows = [
        {"imageGcsUri": "gs://b/a.jpg", "classificationAnnotations": [{"displayName": "cat"}, {"displayName": "dog"}]},
        {
            "imageGcsUri": "gs://b/b.jpg",
            "classificationAnnotation": {"displayName": "cat"},
            "dataItemResourceLabels": {},
        },
        {"imageGcsUri": "gs://b/c.jpg", "boundingBoxAnnotations": [{"displayName": "dog", "xMin": "0.3"}]},
        {"imageGcsUri": "gs://b/d.jpg"},
    ]
    file = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    expected = [("a.jpg", ("cat", "dog")), ("b.jpg", ("cat",)), ("c.jpg", ("dog",)), ("d.jpg", None)]
    assert read_corpus("vertex", tmp_path, file)[0] == [
        ListedImage(f"gs://b/{name}", labels) for name, labels in expected
    ]
    write(tmp_path / "a.jpg", "")  # a copy of the first one stands for copies of its folder
    assert read_corpus("vertex", tmp_path, file)[0] == [ListedImage(name, labels) for name, labels in expected]


def test_sagemaker(tmp_path, read_corpus) -> None:
    multi = {"class-map": {"0": "cat", "1": "dog"}, "type": "groundtruth/image-classification-multilabel"}
    single = {"class-name": "cat", "confidence": 0.9, "type": "groundtruth/image-classification"}
    verified = {"class-name": "good", "type": "groundtruth/label-verification"}
    boxes = {"annotations": [{"class_id": 1, "left": 1}, {"class_id": 1, "left": 2}], "image_size": []}
    rows = [
        {"source-ref": "s3://b/a.jpg", "animals": [0, 1], "animals-metadata": multi},
        {"source-ref": "s3://b/b.jpg", "animals": 0, "animals-metadata": single},
        {"source-ref": "s3://b/c.jpg", "b": boxes, "b-metadata": multi, "v": 1, "v-metadata": verified},
        {"source-ref": "s3://b/d.jpg", "animals": [], "animals-metadata": multi},
        {"source-ref": "s3://b/e.jpg", "animals": [], "animals-metadata": {**multi, "failure-reason": "timeout"}},
        {"source-ref": "s3://b/f.jpg"},
    ]
    file = write(tmp_path / "output.manifest", "\n".join(map(json.dumps, rows)))
    labels = [("cat", "dog"), ("cat",), ("dog",), (), None, None]
    assert read_corpus("sagemaker", tmp_path, file)[0] == [
        ListedImage(f"s3://b/{name}.jpg", names) for name, names in zip("abcdef", labels, strict=True)
    ]


def task(image: str, *annotations: dict, **more: object) -> dict:
    return {"id": 1, "data": {"image": image}, "annotations": list(annotations), "predictions": [], **more}


def choice(*names: str, kind: str = "choices") -> dict:
    return {"from_name": "tag", "to_name": "img", "type": kind, "value": {kind: list(names), "x": 1.0}}


def test_label_studio(tmp_path, read_corpus) -> None:
    for name in ("images/1c-a.jpg", "images/sub/b 1.jpg"):
        write(tmp_path / name, "")
    text = {"type": "textarea", "value": {"text": ["no label"]}}
    tasks = [
        task(
            "/data/upload/1/1c-a.jpg", {"result": [choice("cat", "dog"), choice("cat", kind="rectanglelabels"), text]}
        ),
        task("/data/local-files/?d=disk/sub/b%201.jpg", {"result": []}, {"result": [choice("dog")]}),
        task("s3://bucket/c.jpg", {"result": [choice("cat")], "was_cancelled": True}),
        {"data": {"image": "s3://bucket/d.jpg", "caption": "text"}, "completions": [{"result": [choice("cat")]}]},
    ]
    rows, _ = read_corpus("label_studio", tmp_path / "images", write(tmp_path / "export.json", tasks))
    assert rows == [
        ListedImage("1c-a.jpg", ("cat", "dog")),
        ListedImage("sub/b 1.jpg", ()),
        ListedImage("sub/b 1.jpg", ("dog",)),
        ListedImage("s3://bucket/c.jpg", None),
        ListedImage("s3://bucket/d.jpg", ("cat",)),
    ]


def test_create_ml(tmp_path, read_corpus) -> None:
    entries = [
        {"image": "a.jpg", "annotations": [{"label": "cat", "coordinates": {"x": 1}}, {"label": "dog"}]},
        {"imagefilename": "b.jpg", "annotation": [{"label": "cat"}]},
        {"imageURL": "c.jpg", "annotation": "dog"},
        {"image": "d.jpg", "annotations": []},
        {"image": "e.jpg"},
    ]
    labels = [("cat", "dog"), ("cat",), ("dog",), (), None]
    assert read_corpus("create_ml", tmp_path, write(tmp_path / "a.json", entries))[0] == [
        ListedImage(f"{name}.jpg", names) for name, names in zip("abcde", labels, strict=True)
    ]


def test_fiftyone(tmp_path, read_corpus) -> None:
    for name in ("a.jpg", "sub/b.png", "c.jpg", "d.jpg"):
        write(tmp_path / "data" / name, "")
    labels = {"a": 1, "sub/b": [0, 1], "c.jpg": None, "d": {"label": "dog", "confidence": 1.0}}
    write(tmp_path / "labels.json", {"classes": ["dog", "cat"], "labels": labels})
    expected = [("a.jpg", ("cat",)), ("sub/b.png", ("dog", "cat")), ("c.jpg", None), ("d.jpg", ("dog",))]
    rows, vocabulary = read_corpus("fiftyone", tmp_path)
    assert rows == [ListedImage(f"data/{name}", names) for name, names in expected]
    assert vocabulary.names == ["dog", "cat"]
    write(tmp_path / "labels.json", {"classes": None, "labels": {"a": "cat"}})
    assert read_corpus("fiftyone", tmp_path / "data", tmp_path / "labels.json")[0] == [ListedImage("a.jpg", ("cat",))]
    write(tmp_path / "data/a.png", "")
    with pytest.raises(CorpusError, match=r"labels of 'a': 2 images of that name"):
        read_corpus("fiftyone", tmp_path / "data", tmp_path / "labels.json")


def cvat_xml(images: str, meta: str = "<label><name>dog</name></label><label><name>cat</name></label>") -> str:
    meta = f"<meta><task><name>t</name><labels>{meta}</labels></task></meta>"
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>{meta}{images}</annotations>'


def test_cvat(tmp_path, read_corpus) -> None:
    box = '<box label="cat" xtl="1"><attribute name="sex">male</attribute></box>'
    images = (
        f'<image id="0" name="sub\\a.jpg" width="6"><tag label="dog"/>{box}{box}</image>'
        '<image id="1" name="b.jpg"/><image id="2" name="c.jpg"><polygon label="dog" points="1,2"/></image>'
    )
    rows, vocabulary = read_corpus("cvat", tmp_path, write(tmp_path / "annotations.xml", cvat_xml(images)))
    labels = [("sub/a.jpg", ("dog", "cat")), ("b.jpg", ()), ("c.jpg", ("dog",))]
    assert rows == [ListedImage(*row) for row in labels]
    assert vocabulary.names == ["dog", "cat"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('<!DOCTYPE a [<!ENTITY x "y">]><annotations/>', "has a DOCTYPE"),
        ("<annotation/>", "starts with <annotation>, expected <annotations>"),
        (cvat_xml('<track id="0" label="cat"/>'), "so it is of a video; export it as `CVAT for images 1.1`"),
        (cvat_xml(""), "no <image> in it"),
        (cvat_xml('<image id="0"/>'), "an <image> without name"),
        (cvat_xml('<image name="a.jpg"><box xtl="1"/></image>'), "image a.jpg: <box> without label"),
        (cvat_xml('<image name="a.jpg"><tag label="bird"/></image>'), "label 'bird' is not in the vocabulary"),
        (cvat_xml('<image name="a.jpg">'), "not valid XML .*line 2"),
        ("", "not valid XML"),
    ],
)
def test_damaged_cvat(tmp_path, read_corpus, content: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        read_corpus("cvat", tmp_path, write(tmp_path / "annotations.xml", content))


def test_roboflow(tmp_path, read_corpus) -> None:
    write(tmp_path / "train/_classes.csv", "filename, cat, dog\na.jpg, 1, 0\nb.jpg, 1, 1\n")
    write(tmp_path / "valid/_classes.csv", "filename, dog, cat\nc.jpg, 1, 0\n")
    rows, vocabulary = read_corpus("roboflow", tmp_path)
    assert rows == [
        ListedImage("train/a.jpg", ("cat",)),
        ListedImage("train/b.jpg", ("cat", "dog")),
        ListedImage("valid/c.jpg", ("dog",)),
    ]
    assert vocabulary.names == ["cat", "dog"]
    assert read_corpus("roboflow", tmp_path / "train", tmp_path / "train/_classes.csv")[0][0].uri == "a.jpg"
    write(tmp_path / "test/_classes.csv", "filename, bird\nc.jpg, 1\n")
    with pytest.raises(CorpusError, match=r"other classes than in .*test/_classes.csv"):
        read_corpus("roboflow", tmp_path)
    write(tmp_path / "test/_classes.csv", "filename, cat\nc.jpg, -1\n")
    with pytest.raises(CorpusError, match=r"line 2: column 'cat' is '-1', expected 1, 0 or empty"):
        read_corpus("roboflow", tmp_path / "test")
    with pytest.raises(CorpusError, match=r"no _classes\.csv in it"):
        read_corpus("roboflow", write(tmp_path / "empty/x", "").parent)


def test_chexpert(tmp_path, read_corpus) -> None:
    path = "CheXpert-v1.0/train/patient1/study1/view1_frontal.jpg"
    head = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema,Fracture\n"
    file = write(tmp_path / "train.csv", f"{head}{path},Female,0,Frontal,AP,1.0,0.0,-1.0\n{path},Male,1,Lateral,,,,\n")
    rows, vocabulary = read_corpus("chexpert", tmp_path, file)
    assert rows == [ListedImage(path, ("No Finding",), ("Edema",)), ListedImage(path, None)]
    assert vocabulary.names == ["No Finding", "Edema", "Fracture"]
    write(tmp_path / "train/patient1/study1/view1_frontal.jpg", "")
    assert read_corpus("chexpert", tmp_path, file)[0][0].uri == path.partition("/")[2]


def test_celeba(tmp_path, read_corpus) -> None:
    file = write(tmp_path / "list_attr_celeba.txt", "2\nSmiling Male\na.jpg  1 -1\nb.jpg -1  1\n")
    rows, vocabulary = read_corpus("celeba", tmp_path, file)
    assert rows == [ListedImage("a.jpg", ("Smiling",)), ListedImage("b.jpg", ("Male",))]
    assert vocabulary.names == ["Smiling", "Male"]
    file = write(tmp_path / "a.csv", "image_id,Smiling,Male\na.jpg,1,-1\nb.jpg,-1,1\n")
    assert read_corpus("celeba", tmp_path, file)[0] == rows
    for content, message in (
        ("3\nSmiling Male\na.jpg  1 -1\n", "1 images, but 3 in its first line"),
        ("1\nSmiling Male\na.jpg  1\n", "line 3: 2 fields, expected 3"),
        ("1\nSmiling Male\na.jpg  1 0\n", "line 3: column 'Male' is '0', expected 1, -1 or empty"),
        ("a b\n", "expected the number of images in the first line"),
        ("1\n", "ends after the first line"),
        ("1\nSmiling\n", "no rows"),
    ):
        with pytest.raises(CorpusError, match=message):
            read_corpus("celeba", tmp_path, write(tmp_path / "b.txt", content))


def test_label_matrix(tmp_path, read_corpus) -> None:
    images = write(tmp_path / "formatted_train_images.npy", npy_bytes(np.array(["a.jpg", "é.jpg"])))
    labels = write(tmp_path / "formatted_train_labels.npy", npy_bytes(np.array([[1.0, 0, 1], [0, 0, 0]])))
    assert read_corpus("label_matrix", tmp_path, labels)[0] == [
        ListedImage("a.jpg", ("0", "2")),
        ListedImage("é.jpg", ()),
    ]
    write(tmp_path / "classes.txt", "cat\ndog\nbird\n")
    observed = npy_bytes(np.asfortranarray(np.array([[1, 0, 0], [-1, 1, -1]], np.int8)))
    file = write(tmp_path / "formatted_train_uniform_labels_obs.npy", observed)
    rows, vocabulary = read_corpus("label_matrix", tmp_path, file)
    assert rows == [ListedImage("a.jpg", ("cat",), ()), ListedImage("é.jpg", ("dog",))]
    assert vocabulary.names == ["cat", "dog", "bird"]
    for content, message in (
        (npy_bytes(np.array([[1, 0, 2], [0, 0, 0]])), "row 0, column 2: 2, expected -1, 0 or 1"),
        (npy_bytes(np.array([[1, np.nan, 1], [0, 0, 0]])), "row 0, column 1: nan"),
        (npy_bytes(np.zeros((3, 3))), "3 rows, but 2 images are listed beside it"),
        (npy_bytes(np.zeros((2, 4))), "classes.txt: 3 names, but .* has 4 columns"),
        (npy_bytes(np.zeros(2)), "expected an N x C matrix"),
        (labels.read_bytes()[:-1], "the file is not whole"),
        (npy_bytes(np.zeros((2, 3)))[:40], "not an array of numpy.save"),
    ):
        with pytest.raises(CorpusError, match=message):
            read_corpus("label_matrix", tmp_path, write(labels, content))
    for content, message in (
        (npy_bytes(np.array(["a.jpg", "b.jpg"], object)), r"allow_pickle=True\).astype\(str\)"),
        (npy_bytes(np.array(["a.jpg", ""])), "image 1 has an empty name"),
        (npy_bytes(np.array([1, 2])), "expected a list of N texts"),
    ):
        write(images, content)
        with pytest.raises(CorpusError, match=message):
            read_corpus("label_matrix", tmp_path, file)
    images.unlink()
    with pytest.raises(CorpusError, match=r"formatted_train_uniform_images.npy: no such file; put .*\.txt"):
        read_corpus("label_matrix", tmp_path, file)


@pytest.mark.parametrize(
    ("corpus", "content", "message"),
    [
        ("azure", '{"image_url": "a.jpg", "label": 1}', "line 1: label: expected a text, found 1"),
        ("azure", '{"image_url": "http://x/z.jpg"}', "'http://x/z.jpg' has no copy below"),
        ("azure", '{"uri": "a.jpg"}', "line 1: image_url: expected a text, found null"),
        ("azure", "\n", "no lines; expected one object per line"),
        ("azure", "[]", "line 1: expected an object"),
        ("azure", '{"image_url": "\\ud800"}', "line 1: not valid JSON .*surrogates"),
        ("vertex", '{"imageGcsUri": "a", "classificationAnnotations": {}}', "expected a list, found {}"),
        ("vertex", '{"imageGcsUri": "a", "classificationAnnotation": "cat"}', "annotation with displayName"),
        (
            "sagemaker",
            '{"source-ref": "a", "x": 0, "x-metadata": {"class-map": {}}}',
            "class-map of 0: expected a text",
        ),
        (
            "sagemaker",
            '{"source-ref": "a", "x": 0, "x-metadata": {}, "y": 1, "y-metadata": {}}',
            "label attributes x, y",
        ),
        ("label_studio", '[{"image": "a.jpg", "choice": "cat"}]', "task 0: no data, .*not JSON-MIN"),
        ("label_studio", "[]", "no tasks"),
        ("label_studio", '[{"data": {"a": "x", "b": "y"}}]', "2 texts in data, expected one image"),
        ("create_ml", '{"a": 1}', "expected Create ML annotations"),
        ("create_ml", '[{"image": "a.jpg", "label": "a", "annotations": []}]', "entry 0: has annotations and label"),
        ("fiftyone", '{"classes": ["cat"], "labels": {"x": 1}}', "labels of 'x': 0 images of that name"),
        ("fiftyone", '{"classes": ["cat"], "labels": {"a": 1}}', "class 1, but there are 1 class names"),
        ("fiftyone", '{"labels": {"a": 1}}', "expected a class, found 1"),
        ("chexpert", "Path,Edema\na.jpg,1\n", "expected the columns Path,Sex,Age"),
        ("roboflow", "filename,cat\na.jpg\n", "line 2: 1 fields, expected 2"),
        ("roboflow", "filename,cat\n,1\n", "line 2: no image"),
    ],
)
def test_malformed_files(tmp_path, read_corpus, corpus: str, content: str, message: str) -> None:
    write(tmp_path / "images/a.jpg", "")
    with pytest.raises(CorpusError, match=message) as raised:
        read_corpus(corpus, tmp_path / "images", write(tmp_path / "file", content))
    assert "\n" not in str(raised.value)


def test_voc_xml(tmp_path, read_corpus, capsys) -> None:
    def annotation(filename: str, *names: str) -> str:
        return f"<annotation><filename>{filename}</filename>{''.join(map(voc_object, names))}</annotation>"

    def voc_object(name: str) -> str:
        return f"<object><name>{name}</name></object>"

    write(tmp_path / "a.xml", annotation("a.jpg", "cat", "dog"))
    write(tmp_path / "sub/b.xml", annotation("b.png", "dog"))
    for name in ("a.jpg", "sub/b.png", "c.jpg"):
        write(tmp_path / name, "")
    rows, vocabulary = read_corpus("voc_xml", tmp_path)
    assert rows == [ListedImage("a.jpg", ("cat", "dog")), ListedImage("sub/b.png", ("dog",))]
    assert vocabulary.names == ["cat", "dog"]
    assert "1 of 3 images have no XML file and are not listed" in capsys.readouterr().err
    with pytest.raises(CorpusError, match=r"no XML files \(\*\.xml\) under it"):
        read_corpus("voc_xml", tmp_path, write(tmp_path / "empty/x", "").parent)
    with pytest.raises(CorpusError, match="a file, expected the folder of the XML files"):
        read_corpus("voc_xml", tmp_path, tmp_path / "a.xml")


def test_image_folder(tmp_path, read_corpus) -> None:
    write(tmp_path / "train/metadata.csv", "file_name,label\na.jpg,cat\n")
    write(tmp_path / "val/metadata.jsonl", '{"file_name": "sub/b.jpg", "labels": ["cat", "dog"], "text": "a"}\n')
    expected = [ListedImage("train/a.jpg", ("cat",)), ListedImage("val/sub/b.jpg", ("cat", "dog"))]
    assert read_corpus("image_folder", tmp_path)[0] == expected
    assert read_corpus("image_folder", tmp_path, tmp_path / "train/metadata.csv")[0][0].uri == "a.jpg"
    write(tmp_path / "test/metadata.csv", "file_name,cat,dog\na.jpg,1,0\n")
    with pytest.raises(CorpusError, match="its metadata files have different class columns"):
        read_corpus("image_folder", tmp_path)
    with pytest.raises(CorpusError, match=r"no metadata\.csv, .* in it"):
        read_corpus("image_folder", write(tmp_path / "empty/x.csv", "").parent)
    with pytest.raises(CorpusError, match=r"expected one of metadata\.csv"):
        read_corpus("image_folder", tmp_path, tmp_path / "empty/x.csv")


def test_arrow_written_by_datasets(read_corpus) -> None:
    folder = REPOSITORY / "tests/fixtures/annotation_cases/hf/arrow"
    rows, vocabulary = read_corpus("arrow", folder)
    assert vocabulary.names == ["cat", "dog", "bird"]
    assert [(row.uri, row.offset) for row in rows] == [
        (f"data-00000-of-00001.arrow#{number}", number) for number in range(len(rows))
    ]
    assert {row.labels for row in rows} == {("cat",), ("bird",), None}
    images = list(read_images(str(folder), rows))
    assert [isinstance(image, bytes) and format_of(image) for image in images] == ["jpeg"] * len(rows)
    assert list(read_images(str(folder), rows[::-1])) == images[::-1]


def test_images_in_several_batches_of_an_arrow_file(tmp_path, read_corpus) -> None:
    count = 300  # rows in batches of 7: a reader starts within the file and skips rows
    images = pa.array([{"bytes": b"%d" % number, "path": None} for number in range(count)])
    table = pa.table({"image": images})
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=7)
    rows, _ = read_corpus("arrow", tmp_path, rows_per_partition=100)
    for chosen in ([150, 151, 290, 3], [0], list(range(100, 200))):
        listed = [rows[number] for number in chosen]
        assert list(read_images(str(tmp_path), listed)) == [b"%d" % number for number in chosen]


def test_arrow(tmp_path, read_corpus) -> None:
    file = FORMATS["arrow"].write(EXAMPLE, tmp_path)
    rows, _ = read_corpus("arrow", tmp_path)
    table = pa.ipc.open_stream(file.read_bytes()).read_all()
    with pa.ipc.new_file(file, table.schema) as indexed:  # the format with an index
        indexed.write_table(table)
    assert read_corpus("arrow", tmp_path)[0] == rows
    write(tmp_path / "dataset_dict.json", {"splits": ["train", "test"]})
    with pytest.raises(CorpusError, match=r"has several splits \(dataset_dict\.json\); name the folder of one"):
        read_corpus("arrow", tmp_path)


# ---- random annotations, and damaged files ----

LABELS: tuple[str, ...] = ("cat", "dog, é", "a|b")
COMPLETE, ROWS, CELLS = "present or absent", "all labels of an image may be unknown", "each label may be unknown"


BESIDE_IMAGES = ("voc_xml", "image_folder", "arrow")
"""Formats whose annotations are in the folder of images and are not named."""


class Format(NamedTuple):
    """One annotation format: what it can express, and a function (states [N, C], folder) -> a file with annotations."""

    expresses: str
    write: Callable[[list[list[int]], Path], Path]


def present(row: list[int]) -> list[str] | None:
    """Names of the present labels; None if all labels are unknown."""
    return None if not any(row) else [name for name, state in zip(LABELS, row, strict=True) if state == PRESENT]


def json_lines(rows: Iterable[dict]) -> str:
    return "\n".join(map(json.dumps, rows))


def without_none(row: dict) -> dict:
    return {key: value for key, value in row.items() if value is not None}


def write_azure(states: list[list[int]], folder: Path) -> Path:
    rows = ({"image_url": f"{number}.jpg", "label": present(row)} for number, row in enumerate(states))
    return write(folder / "train.jsonl", json_lines(map(without_none, rows)))


def write_vertex(states: list[list[int]], folder: Path) -> Path:
    def annotate(row: list[int]) -> list[dict] | None:
        names = present(row)
        return None if names is None else [{"displayName": name} for name in names]

    rows = (
        {"imageGcsUri": f"gs://b/{number}.jpg", "classificationAnnotations": annotate(row)}
        for number, row in enumerate(states)
    )
    return write(folder / "vertex.jsonl", json_lines(map(without_none, rows)))


def write_sagemaker(states: list[list[int]], folder: Path) -> Path:
    def line(number: int, row: list[int]) -> dict:
        names = present(row)
        image = {"source-ref": f"s3://b/{number}.jpg"}
        if names is None:
            return image
        class_map = {str(LABELS.index(name)): name for name in names}
        return {**image, "x": [int(key) for key in class_map], "x-metadata": {"class-map": class_map}}

    return write(folder / "output.manifest", json_lines(line(*row) for row in enumerate(states)))


def write_label_studio(states: list[list[int]], folder: Path) -> Path:
    tasks = []
    for number, row in enumerate(states):
        names = present(row)
        tasks.append(task(f"{number}.jpg", *([] if names is None else [{"result": [choice(*names)]}])))
    return write(folder / "export.json", tasks)


def write_create_ml(states: list[list[int]], folder: Path) -> Path:
    entries = []
    for number, row in enumerate(states):
        names = present(row)
        labels = {} if names is None else {"annotations": [{"label": name} for name in names]}
        entries.append({"image": f"{number}.jpg", **labels})
    return write(folder / "createml.json", entries)


def write_fiftyone(states: list[list[int]], folder: Path) -> Path:
    labels = {}
    for number, row in enumerate(states):
        write(folder / f"data/{number}.jpg", "")
        names = present(row)
        labels[str(number)] = None if names is None else [LABELS.index(name) for name in names]
    return write(folder / "labels.json", {"classes": LABELS, "labels": labels})


def write_cvat(states: list[list[int]], folder: Path) -> Path:
    def element(number: int, row: list[int]) -> str:
        tags = "".join(f"<tag label={quoteattr(name)}/>" for name in present(row) or ())
        return f'<image id="{number}" name="{number}.jpg">{tags}</image>'

    meta = "".join(f"<label><name>{escape(name)}</name></label>" for name in LABELS)
    return write(folder / "annotations.xml", cvat_xml("".join(element(*row) for row in enumerate(states)), meta))


def write_table(path: Path, header: Sequence[str], states: list[list[int]], cells: dict[int, str]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*header, *LABELS])
    for number, row in enumerate(states):
        writer.writerow([f"{number}.jpg", *("" for _ in header[1:]), *(cells[state] for state in row)])
    return write(path, text.getvalue())


def write_roboflow(states: list[list[int]], folder: Path) -> Path:
    return write_table(folder / "_classes.csv", ["filename"], states, {PRESENT: "1", ABSENT: "0", UNKNOWN: ""})


def write_chexpert(states: list[list[int]], folder: Path) -> Path:
    header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA"]
    return write_table(folder / "train.csv", header, states, {PRESENT: "1.0", ABSENT: "0.0", UNKNOWN: "-1.0"})


def write_celeba(states: list[list[int]], folder: Path) -> Path:
    rows = [f"{number}.jpg {' '.join(map(str, row))}" for number, row in enumerate(states)]
    lines = [str(len(rows)), "Cat Dog Bird", *rows]
    return write(folder / "list_attr_celeba.txt", "\n".join(lines))


def write_label_matrix(states: list[list[int]], folder: Path) -> Path:
    write(folder / "classes.txt", "\n".join(LABELS))
    names = np.array([f"{number}.jpg" for number in range(len(states))])
    write(folder / "formatted_val_images.npy", npy_bytes(names))
    return write(folder / "formatted_val_labels_obs.npy", npy_bytes(np.array(states)))


def write_voc_xml(states: list[list[int]], folder: Path) -> Path:
    for number, row in enumerate(states):
        objects = "".join(
            f"<object><name>{escape(name)}</name><difficult>{int(state == UNKNOWN)}</difficult></object>"
            for name, state in zip(LABELS, row, strict=True)
            if state != ABSENT
        )
        write(folder / f"{number}.jpg", "")
        write(folder / f"{number}.xml", f"<annotation><filename>{number}.jpg</filename>{objects}</annotation>")
    return folder / "0.xml"


def write_image_folder(states: list[list[int]], folder: Path) -> Path:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["file_name", "labels"])
    for number, row in enumerate(states):
        names = present(row)
        writer.writerow([f"{number}.jpg", "" if names is None else json.dumps(names)])
    return write(folder / "train/metadata.csv", text.getvalue())


def write_arrow(states: list[list[int]], folder: Path) -> Path:
    names = [present(row) for row in states]
    numbers = [None if row is None else [LABELS.index(name) for name in row] for row in names]
    feature = {"_type": "Sequence", "feature": {"_type": "ClassLabel", "names": LABELS}}
    info = {"info": {"features": {"labels": feature, "image": {"_type": "Image"}}}}
    images = [{"bytes": None, "path": f"{number}.jpg"} for number in range(len(states))]
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"image": pa.array(images, image_type), "labels": pa.array(numbers, pa.list_(pa.int64()))}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(info)})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table, max_chunksize=2)
    return write(folder / "data-00000-of-00001.arrow", sink.getvalue())


FORMATS = {
    "voc_xml": Format(CELLS, write_voc_xml),
    "image_folder": Format(ROWS, write_image_folder),
    "arrow": Format(ROWS, write_arrow),
    "azure": Format(ROWS, write_azure),
    "vertex": Format(ROWS, write_vertex),
    "sagemaker": Format(ROWS, write_sagemaker),
    "label_studio": Format(ROWS, write_label_studio),
    "create_ml": Format(ROWS, write_create_ml),
    "fiftyone": Format(ROWS, write_fiftyone),
    "cvat": Format(COMPLETE, write_cvat),
    "roboflow": Format(CELLS, write_roboflow),
    "chexpert": Format(CELLS, write_chexpert),
    "celeba": Format(COMPLETE, write_celeba),
    "label_matrix": Format(CELLS, write_label_matrix),
}


def states(expresses: str) -> st.SearchStrategy[list[list[int]]]:
    known = st.lists(st.sampled_from([PRESENT, ABSENT]), min_size=len(LABELS), max_size=len(LABELS))
    rows = {
        COMPLETE: known,
        ROWS: known | st.just([UNKNOWN] * len(LABELS)),
        CELLS: st.lists(st.sampled_from([PRESENT, ABSENT, UNKNOWN]), min_size=len(LABELS), max_size=len(LABELS)),
    }
    return st.lists(rows[expresses], min_size=1, max_size=6)


def read(corpus: str, images: Path, annotations: Path) -> tuple[list[ListedImage], list[str]]:
    """Lists a corpus with all checks of `write_listing`."""
    where = None if corpus in BESIDE_IMAGES else str(annotations)
    rows = list(get_corpus(corpus)(str(images), where).images)
    listing = get_corpus(corpus)(str(images), where)
    return rows, write_listing(listing, None).vocabulary.names


@pytest.mark.parametrize("corpus", FORMATS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_random_annotations_have_the_same_states(corpus: str, data: st.DataObject) -> None:
    expected = data.draw(states(FORMATS[corpus].expresses))
    with tempfile.TemporaryDirectory() as folder:
        annotations = FORMATS[corpus].write(expected, Path(folder))
        rows, names = read(corpus, Path(folder), annotations)
    assert [row.uri.rpartition("/")[2] for row in rows] == [f"{number}.jpg" for number in range(len(expected))]
    labels = ["Cat", "Dog", "Bird"] if corpus == "celeba" else list(LABELS)
    assert set(names) <= set(labels)
    listed = [labels.index(name) for name in names]  # a label that no image has may be missing
    assert all(PRESENT not in column for c, column in enumerate(zip(*expected, strict=True)) if c not in listed)
    found = label_states(rows, Vocabulary.from_names(names)) if names else np.zeros((len(rows), 0))
    assert found.tolist() == [[row[c] for c in listed] for row in expected]


def error_of(call: Callable[[], object]) -> str | None:
    """Message of the SigrlError that a call raises; None if it raises none."""
    try:
        call()
    except SigrlError as error:
        return str(error)
    return None


EXAMPLE = [[1, -1, 1], [-1, -1, -1], [1, 1, 1]]


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """Random bytes, or the good file with a part replaced."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    start = draw(st.integers(0, len(good)))
    stop = draw(st.integers(start, min(len(good), start + 20)))
    part = draw(
        st.binary(max_size=8) | st.sampled_from([b'"', b"{", b"]", b"null", b"-1", b"1e999", b"\\ud800", b"\n,"])
    )
    return good[:start] + part + good[draw(st.sampled_from([stop, len(good)])) :]


@pytest.mark.parametrize("corpus", FORMATS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_files_raise_errors_of_one_line(corpus: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        annotations = FORMATS[corpus].write(EXAMPLE, Path(folder))
        annotations.write_bytes(data.draw(damaged(annotations.read_bytes())))
        error = error_of(lambda: read(corpus, Path(folder), annotations))
    assert error is None or "\n" not in error
