"""Random annotations, with odd names, are written in each format by a minimal writer and read with the same states."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigrl_core.corpora import label_states, open_corpus
from sigrl_core.labels.vocabulary import Vocabulary

pytestmark = pytest.mark.unit

ODD = "ab ,;'\"éß猫😀#:.-_()&<>%"
NAMES = st.text(ODD + "|[]\\/", min_size=1, max_size=8).map(str.strip).filter(bool)
FILE_NAMES = st.text(ODD, max_size=8).map(lambda text: f"x{text}y")


class Annotations(NamedTuple):
    """Label names, and for every image its name without ending and its states; `states` is None if not annotated."""

    labels: list[str]
    images: list[tuple[str, list[int] | None]]

    def names(self, states: list[int], state: int) -> list[str]:
        return [name for name, each in zip(self.labels, states, strict=True) if each == state]


def annotations(*states: int, unlabelled: bool) -> st.SearchStrategy[Annotations]:
    """Random annotations with these states; with `unlabelled`, some images are not annotated."""

    def rows(labels: list[str]) -> st.SearchStrategy[Annotations]:
        row = st.lists(st.sampled_from(states), min_size=len(labels), max_size=len(labels))
        one = st.tuples(FILE_NAMES, st.one_of(row, st.none()) if unlabelled else row)
        images = st.lists(one, min_size=1, max_size=6, unique_by=lambda image: image[0])
        return images.map(lambda images: Annotations(labels, images))

    return st.lists(NAMES, min_size=1, max_size=4, unique=True).flatmap(rows)


COMPLETE = annotations(1, -1, unlabelled=False)
WITH_UNLABELLED = annotations(1, -1, unlabelled=True)
ALL_STATES = annotations(1, -1, 0, unlabelled=False)


def write_csv(data: Annotations, folder: Path) -> dict[str, str]:
    """Lists of JSON where a name has a separator or bracket, else names with `|` between them; compressed."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["uri", "width", "labels"])
    for name, states in data.images:
        names = data.names(states or [-1] * len(data.labels), 1)
        is_plain = names and not any("|" in each or "[" in each for each in names)
        cell = "" if states is None else "|".join(names) if is_plain else json.dumps(names)
        writer.writerow([f"{name}.jpg", 7, cell])
    (folder / "a.csv").write_bytes(gzip.compress(text.getvalue().encode()))
    return {"annotations": "a.csv"}


def write_csv_with_negatives(data: Annotations, folder: Path) -> dict[str, str]:
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t")
    writer.writerow(["Negatives", "File Name", "Tags"])
    for name, states in data.images:
        assert states is not None
        writer.writerow([json.dumps(data.names(states, -1)), f"{name}.jpg", str(data.names(states, 1))])
    (folder / "a.csv").write_text(text.getvalue())
    return {"annotations": "a.csv"}


def write_jsonl(data: Annotations, folder: Path) -> dict[str, str]:
    rows = (
        {"file_name": f"{name}.jpg", "width": 7}
        | ({} if states is None else {"labels": data.names(states, 1), "negatives": data.names(states, -1)})
        for name, states in data.images
    )
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"annotations": "a.jsonl"}


def write_parquet(data: Annotations, folder: Path) -> dict[str, str]:
    columns = {
        "uri": [f"{name}.jpg" for name, _ in data.images],
        "labels": pa.array(
            [None if states is None else data.names(states, 1) for _, states in data.images], pa.list_(pa.string())
        ),
    }
    pq.write_table(pa.table(columns), folder / "a.parquet", row_group_size=2)
    return {"annotations": "a.parquet"}


def write_class_columns(data: Annotations, folder: Path) -> dict[str, str]:
    columns = {"uri": [f"{name}.jpg" for name, _ in data.images]}
    for position, label in enumerate(data.labels):
        states = [None if row is None else {1: True, -1: False, 0: None}[row[position]] for _, row in data.images]
        columns[label] = pa.array(states, pa.bool_())
    pq.write_table(pa.table(columns), folder / "a.parquet")
    return {"annotations": "a.parquet"}


def write_coco(data: Annotations, folder: Path) -> dict[str, str]:
    """Ids are texts in half of the rows."""
    content = {
        "images": [{"id": number, "file_name": f"{name}.jpg"} for number, (name, _) in enumerate(data.images)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(data.labels)],
        "annotations": [
            {"image_id": str(number) if position % 2 else number, "category_id": position, "bbox": [0, 0, 1, 1]}
            for number, (_, states) in enumerate(data.images)
            for position, state in enumerate(states or ())
            if state == 1
        ],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return {"annotations": "a.json"}


def write_lvis(data: Annotations, folder: Path) -> dict[str, str]:
    where = write_coco(data, folder)
    content = json.loads((folder / "a.json").read_text())
    for image, (name, states) in zip(content["images"], data.images, strict=True):
        del image["file_name"]
        image["coco_url"] = f"http://images.cocodataset.org/{folder.name}/{name}.jpg"
        image["neg_category_ids"] = [position for position, state in enumerate(states or ()) if state == -1]
    (folder / "a.json").write_text(json.dumps(content))
    return where


def write_voc(data: Annotations, folder: Path) -> dict[str, str]:
    """Unknown labels are difficult objects; every label is also in an image of its own, because no file lists them."""
    for path in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / path).mkdir(parents=True)
    data.images.append(("all", [1] * len(data.labels)))
    for name, states in data.images:
        objects = "".join(
            f"<object><name>{escape(label)}</name><difficult>{int(state == 0)}</difficult></object>"
            for label, state in zip(data.labels, states or (), strict=True)
            if state != -1
        )
        xml = f"<annotation><filename>{escape(name)}.jpg</filename>{objects}</annotation>"
        (folder / "Annotations" / f"{name}.xml").write_text(xml)
    (folder / "ImageSets/Main/train.txt").write_text("".join(f"{name}\n" for name, _ in data.images))
    return {"annotations": "ImageSets/Main/train.txt", "images": "JPEGImages"}


def write_yolo(data: Annotations, folder: Path) -> dict[str, str]:
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    data.images.sort(key=lambda image: f"{image[0]}.jpg")  # images are listed in the order of their names
    (folder / "data.yaml").write_text(json.dumps({"names": data.labels}))
    for name, states in data.images:
        (folder / "images" / f"{name}.jpg").write_bytes(b"")
        lines = (f"{position:.6e} 0 0 1 1\n" for position, state in enumerate(states or ()) if state == 1)
        (folder / "labels" / f"{name}.txt").write_text("".join(lines))
    return {"annotations": "data.yaml", "images": "images"}


def write_open_images(data: Annotations, folder: Path) -> dict[str, str]:
    """Images without a label that is known have no line."""
    with open(folder / "class-descriptions-boxable.csv", "w", newline="") as file:
        csv.writer(file).writerows((f"/m/{number}", name) for number, name in enumerate(data.labels))
    data.images[:] = [(name, states) for name, states in data.images if any(states or ())] or [
        ("x", [1] * len(data.labels))
    ]
    with open(folder / "a.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ImageID", "Source", "LabelName", "Confidence", "XMin"])
        for name, states in data.images:
            writer.writerows(
                [name, "xclick", f"/m/{position}", int(state == 1), 0.5]
                for position, state in enumerate(states or ())
                if state
            )
    return {"annotations": "a.csv"}


def write_hugging_face(data: Annotations, folder: Path) -> dict[str, str]:
    feature = {"feature": {"names": data.labels, "_type": "ClassLabel"}, "_type": "List"}
    numbers = [None if states is None else np.flatnonzero(np.equal(states, 1)).tolist() for _, states in data.images]
    table = pa.table(
        {"image": [name.encode() for name, _ in data.images], "label": pa.array(numbers, pa.list_(pa.int64()))}
    )
    metadata = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    pq.write_table(table.replace_schema_metadata(metadata), folder / "0.parquet", row_group_size=2)
    return {"label_numbers": "classes"}


def write_multi_hot(data: Annotations, folder: Path) -> dict[str, str]:
    values = [None if states is None else [float(state == 1) for state in states] for _, states in data.images]
    table = pa.table({"image": [name.encode() for name, _ in data.images], "labels": values})
    pq.write_table(table, folder / "0.parquet")
    (folder / "names.txt").write_text("\n".join(data.labels))
    return {"annotations": "names.txt"}


def write_webdataset(data: Annotations, folder: Path) -> dict[str, str]:
    """The names of images have dots, and no sample has the key of another one."""
    with tarfile.open(folder / "0.tar.gz", "w:gz") as tar:
        for number, (name, states) in enumerate(data.images):
            files = {"jpg": b"image"}
            if states is not None:
                content = {"labels": data.names(states, 1), "negatives": data.names(states, -1)}
                files["json"] = json.dumps(content).encode()
            for ending, content in files.items():
                member = tarfile.TarInfo(f"{number}{name}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return {}


FORMATS: dict[str, tuple[str, Callable[[Annotations, Path], dict[str, str]], st.SearchStrategy[Annotations]]] = {
    "csv": ("csv", write_csv, WITH_UNLABELLED),
    "csv with negatives": ("csv", write_csv_with_negatives, ALL_STATES),
    "jsonl": ("jsonl", write_jsonl, annotations(1, -1, 0, unlabelled=True)),
    "parquet": ("parquet", write_parquet, WITH_UNLABELLED),
    "coco": ("coco", write_coco, COMPLETE),
    "lvis": ("coco", write_lvis, ALL_STATES),
    "voc": ("voc", write_voc, ALL_STATES),
    "yolo": ("yolo", write_yolo, COMPLETE),
    "open_images": ("open_images", write_open_images, ALL_STATES),
    "hugging_face": ("hugging_face", write_hugging_face, WITH_UNLABELLED),
    "hugging_face multi-hot": ("hugging_face", write_multi_hot, COMPLETE),
    "webdataset": ("webdataset", write_webdataset, annotations(1, -1, 0, unlabelled=True)),
}


@pytest.mark.parametrize("name", FORMATS)
def test_round_trip(name: str) -> None:
    corpus, write, strategy = FORMATS[name]

    @settings(max_examples=25, deadline=None, database=None)
    @given(strategy)
    def check(data: Annotations) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "train"
            folder.mkdir()
            options = write(data, folder)
            images, file = str(folder / options.pop("images", "")), options.pop("annotations", None)
            listing = open_corpus(corpus, images, file and str(folder / file), **options)
            rows = list(listing.images)
            if listing.vocabulary is not None:
                assert set(listing.vocabulary.names) == set(data.labels)
        states = label_states(rows, Vocabulary.from_names(data.labels)).tolist()
        assert states == [each or [0] * len(data.labels) for _, each in data.images]
        if corpus not in ("webdataset", "hugging_face"):
            assert [row.uri for row in rows] == [f"{name}.jpg" for name, _ in data.images]

    check()


def test_class_columns_round_trip() -> None:
    """Labels without a value in any row are no classes."""

    @settings(max_examples=25, deadline=None, database=None)
    @given(annotations(1, -1, 0, unlabelled=False))
    def check(data: Annotations) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            options = write_class_columns(data, Path(temporary))
            listing = open_corpus("parquet", temporary, f"{temporary}/{options['annotations']}")
            rows = list(listing.images)
        known = [
            name for position, name in enumerate(data.labels) if any((row or ())[position] for _, row in data.images)
        ]
        if known:
            assert listing.vocabulary is not None
            assert listing.vocabulary.names == known
        states = label_states(rows, Vocabulary.from_names(data.labels))
        for (_, expected), row in zip(data.images, states.tolist(), strict=True):
            kept = [position for position, name in enumerate(data.labels) if name in known]
            assert [row[position] for position in kept] == [(expected or [])[position] for position in kept]

    check()
