"""Annotation files of other tools that were read wrongly once: what each reader must return for them.

Every folder of tests/fixtures/annotation_cases stands for a kind of file. `CASES` has the states of all labels of each
image, `REFUSED` the message for files that are not read, `REPORTED` the line on stderr.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from sigrl_core.corpora import label_states, open_corpus
from sigrl_core.corpora.image_files import read_images
from sigrl_core.corpora.listing_file import write_listing
from sigrl_core.errors import CorpusError
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.unit

FOLDER = REPOSITORY / "tests" / "fixtures" / "annotation_cases"


class Case(NamedTuple):
    """One input.

    Attributes:
        corpus: name of the corpus.
        images: folder of images, below `FOLDER`.
        annotations: annotation file, below `FOLDER`.
        labels: names of the labels, in order.
        states: uri and states (1 present, -1 absent, 0 unknown) of every row, in order.
        options: flags of preprocess.py.
    """

    corpus: str
    images: str
    annotations: str | None
    labels: list[str]
    states: list[tuple[str, list[int]]]
    options: dict[str, str] = {}  # noqa: RUF012 - nothing changes it


def listed(name: str, labels: list[str], *states: tuple[str, list[int]], **options: str) -> Case:
    """A case in the folder `list`, whose corpus the ending of the file selects."""
    corpus = {"parquet": "parquet", "jsonl": "jsonl"}.get(name.removesuffix(".gz").rpartition(".")[2], "csv")
    return Case(corpus, "list/images", f"list/{name}", labels, list(states), options)


def coco(name: str, labels: list[str], *states: tuple[str, list[int]], file: str = "a.json") -> Case:
    return Case("coco", f"{name}/images", f"{name}/{file}", labels, list(states))


def voc(name: str, labels: list[str], *states: tuple[str, list[int]]) -> Case:
    return Case("voc", f"{name}/JPEGImages", f"{name}/ImageSets/Main/train.txt", labels, list(states))


def hugging_face(name: str, labels: list[str], *states: list[int], names: str | None = None, **options: str) -> Case:
    rows = [(f"train-00000-of-00001.parquet#{row}", each) for row, each in enumerate(states)]
    return Case("hugging_face", f"hf/{name}", names, labels, rows, options)


def webdataset(
    name: str, labels: list[str], *states: tuple[str, list[int]], names: str | None = None, **options: str
) -> Case:
    return Case("webdataset", name, names, labels, list(states), options)


def cloud(corpus: str, ending: str) -> Case:
    return Case(corpus, "list/images", f"list/{corpus}.{ending}", ["cat", "dog"], [("a.jpg", [1, 1])])


THREE = ["cat", "dog", "bird"]
NAMES, HF_NAMES = "wds_multihot/names.txt", "hf/names/n.txt"

CASES = {
    # one row a label; rows of one image are united when they are preprocessed
    "list/csv_long.csv": listed(
        "csv_long.csv", ["cat", "dog"], ("a.jpg", [1, -1]), ("a.jpg", [-1, 1]), ("b.jpg", [-1, 1])
    ),
    "list/jsonl_long.jsonl": listed(
        "jsonl_long.jsonl", ["cat", "dog"], ("a.jpg", [1, -1]), ("a.jpg", [-1, 1]), ("b.jpg", [-1, 1])
    ),
    "list/pq_long.parquet": listed(
        "pq_long.parquet", ["cat", "dog"], ("a.jpg", [1, -1]), ("a.jpg", [-1, 1]), ("b.jpg", [-1, 1])
    ),
    "hf/long": hugging_face("long", THREE, [1, -1, -1], [-1, 1, -1], [-1, 1, -1]),
    "coco_twice": coco("coco_twice", ["cat", "dog"], ("a.jpg", [1, -1]), ("a.jpg", [-1, 1]), ("b.jpg", [-1, -1])),
    # one value per class
    "hf/multihot_int": hugging_face("multihot_int", THREE, [1, -1, 1], [-1, -1, -1], [-1, 1, -1], names=HF_NAMES),
    "hf/multihot_int as classes": hugging_face(
        "multihot_int", THREE, [1, 1, -1], [1, -1, -1], [1, 1, -1], names=HF_NAMES, label_numbers="classes"
    ),
    "hf/multihot_float": hugging_face("multihot_float", ["0", "1", "2"], [1, -1, 1], [-1, 1, -1]),
    "wds_multihot": webdataset(
        "wds_multihot", THREE, ("0.tar#a.jpg", [1, -1, 1]), ("0.tar#b.jpg", [-1, -1, 1]), names=NAMES
    ),
    "wds_npy": webdataset(
        "wds_npy", THREE, ("0.tar#s0000000.jpg", [1, -1, 1]), ("0.tar#s0000001.jpg", [-1, 1, -1]), names=NAMES
    ),
    "hf/boolcols": hugging_face("boolcols", ["Smiling", "Male"], [1, -1], [-1, 1]),
    "list/csv_onehot_uri.csv": listed(
        "csv_onehot_uri.csv", ["cat", "dog"], ("a.jpg", [1, -1]), ("b.jpg", [-1, 1]), ("c.jpg", [1, 1])
    ),
    "list/pq_onehot.parquet": listed("pq_onehot.parquet", ["cat", "dog"], ("a.jpg", [1, 1]), ("b.jpg", [-1, 1])),
    # tars
    "wds_dots": webdataset("wds_dots", ["cat", "dog"], ("0.tar#22.05.jpg", [1, -1]), ("0.tar#b.jpg", [-1, 1])),
    "wds_img2dataset": webdataset(
        "wds_img2dataset", [], ("00000.tar#000000000.jpg", []), ("00000.tar#000000001.jpg", [])
    ),
    "wds_img2dataset with captions": webdataset(
        "wds_img2dataset",
        ["a dog on a beach", "two cats, one sofa"],
        ("00000.tar#000000000.jpg", [1, -1]),
        ("00000.tar#000000001.jpg", [-1, 1]),
        label_field="txt",
    ),
    "wds_img2dataset with captions of the JSON": webdataset(
        "wds_img2dataset",
        ["a dog on a beach", "two cats, one sofa"],
        ("00000.tar#000000000.jpg", [1, -1]),
        ("00000.tar#000000001.jpg", [-1, 1]),
        label_field="caption",
    ),
    "wds_tags": webdataset("wds_tags", ["cat", "dog"], ("0.tar#a.jpg", [1, 1]), ("0.tar#b.jpg", [-1, 1])),
    "wds_tgz": webdataset("wds_tgz", ["3"], ("0.tar.gz#a.jpg", [1])),
    # other columns
    "hf/tags_strings": hugging_face("tags_strings", ["cat", "dog"], [1, 1], [-1, 1]),
    "hf/detection": hugging_face("detection", THREE, [1, -1, 1], [-1, 1, -1]),
    "hf/detection by name": hugging_face("detection", THREE, [1, -1, 1], [-1, 1, -1], label_field="objects.category"),
    "list/csv_filename_label.csv": listed("csv_filename_label.csv", ["cat"], ("a.jpg", [1])),
    "list/metadata.csv": listed("metadata.csv", ["cat"], ("a.jpg", [1])),
    "list/jsonl_extra.jsonl": listed("jsonl_extra.jsonl", ["cat"], ("a.jpg", [1])),
    "list/jsonl_hf_metadata.jsonl": listed("jsonl_hf_metadata.jsonl", ["cat"], ("a.jpg", [1])),
    # cells with several labels
    "list/csv_commas_in_cell.csv": listed(
        "csv_commas_in_cell.csv", ["cat,dog", "dog"], ("a.jpg", [1, -1]), ("b.jpg", [-1, 1])
    ),
    "list/csv_commas_in_cell.csv with a separator": listed(
        "csv_commas_in_cell.csv", ["cat", "dog"], ("a.jpg", [1, 1]), ("b.jpg", [-1, 1]), label_separator=","
    ),
    "list/csv_semicolons_in_cell.csv": listed(
        "csv_semicolons_in_cell.csv", ["cat", "dog"], ("a.jpg", [1, 1]), ("b.jpg", [-1, 1]), label_separator=";"
    ),
    "list/csv_spaces_in_cell.csv": listed(
        "csv_spaces_in_cell.csv", ["horse", "person"], ("a.jpg", [1, 1]), ("b.jpg", [-1, 1]), label_separator=" "
    ),
    "list/csv_label_comma.csv": listed(
        "csv_label_comma.csv",
        ["a|b", "cat", "oyster, dish", 'say "hi"'],
        ("a.jpg", [-1, 1, 1, -1]),
        ("b.jpg", [1, -1, -1, 1]),
    ),
    "list/csv_pylist.csv": listed("csv_pylist.csv", ["cat", "dog"], ("a.jpg", [1, 1])),
    "list/csv_tab.tsv": listed("csv_tab.tsv", ["cat", "dog"], ("a.jpg", [1, 1])),
    "list/csv_semicolon.csv": listed("csv_semicolon.csv", ["cat", "dog"], ("a.jpg", [1, 1])),
    "list/csv_case.csv": listed("csv_case.csv", ["cat"], ("a.jpg", [1])),
    "list/pq_str.parquet": listed("pq_str.parquet", ["cat", "dog"], ("a.jpg", [1, 1]), ("b.jpg", [-1, 1])),
    "list/pq_dict.parquet": listed("pq_dict.parquet", ["cat", "dog"], ("a.jpg", [1, 1]), ("b.jpg", [-1, 1])),
    # compressed
    "coco_gz": coco("coco_gz", ["cat", "dog"], ("a.jpg", [1, -1]), file="a.json.gz"),
    "list/csv_gz.csv.gz": listed("csv_gz.csv.gz", ["cat"], ("a.jpg", [1])),
    "list/jsonl_gz.jsonl.gz": listed("jsonl_gz.jsonl.gz", ["cat"], ("a.jpg", [1])),
    # COCO
    "coco_lvis05": Case(
        "coco",
        "coco_lvis05",
        "coco_lvis05/a.json",
        ["air_conditioner", "coin", "rifle", "rubber_band", "alarm_clock"],
        [("val2017/000000397133.jpg", [1, -1, -1, 0, 0])],
    ),
    "coco_dupname": coco("coco_dupname", ["lego-face"], ("a.jpg", [1]), ("b.jpg", [-1])),
    "coco_strcat": coco("coco_strcat", ["cat"], ("a.jpg", [1])),
    "coco_ls7294": coco("coco_ls7294", ["person"], ("images/cb0618f6-a.png", [1])),
    # Open Images
    "oi_v7_trainable": Case(
        "open_images",
        "oi_v7_trainable/train",
        "oi_v7_trainable/oidv7-train-annotations-human-imagelabels.csv",
        ["Alcoholic beverage"],
        [("000002b66c9c498e.jpg", [1]), ("000002b97e5471a0.jpg", [0])],
    ),
    "oi_boxable_only": Case(
        "open_images",
        "oi_boxable_only/train",
        "oi_boxable_only/train-annotations-human-imagelabels.csv",
        ["Alcoholic beverage", "Oyster, dish", 'Say "hi"'],
        [("000002b66c9c498e.jpg", [1, -1, 0]), ("000002b97e5471a0.jpg", [0, 1, 0])],
    ),
    # VOC and YOLO
    "voc_difficult_text": voc("voc_difficult_text", ["cat"], ("a.jpg", [1])),
    "voc_spaces": voc("voc_spaces", ["cat"], ("download (2).jpg", [1])),
    "voc_comment": voc("voc_comment", ["cat"], ("a.jpg", [1])),
    "voc_noext": voc("voc_noext", ["dog", "food"], ("n07805966_18.jpg", [-1, 1]), ("b.jpg", [0, 1])),
    "voc_renamed": voc("voc_renamed", ["cat", "dog"], ("new1.jpg", [1, -1]), ("b.jpg", [-1, 1])),
    "yolo_float": Case("yolo", "yolo_float/images", "yolo_float/data.yaml", ["cat", "dog"], [("a.jpg", [-1, 1])]),
    # equal files in several class folders are united when they are preprocessed
    "folder_multi": Case(
        *("folder", "folder_multi", None, ["cat", "dog"]),
        [("cat/1.jpg", [1, -1]), ("dog/1.jpg", [-1, 1]), ("dog/2.jpg", [-1, 1])],
    ),
    "folder_split": Case(
        *("folder", "folder_split", None, ["cat", "dog"]),
        [("train/cat/1.jpg", [1, -1]), ("train/dog/2.jpg", [-1, 1]), ("val/cat/3.jpg", [1, -1])],
    ),
    "hf/arrow": Case(
        *("arrow", "hf/arrow", None, THREE),
        [(f"data-00000-of-00001.arrow#{row}", each) for row, each in enumerate(([1, -1, -1], [-1, -1, 1], [0, 0, 0]))],
    ),
    "list/celeba.txt": Case(
        *("celeba", "list/images", "list/celeba.txt", ["Smiling", "Male"]), [("a.jpg", [1, -1]), ("b.jpg", [-1, 1])]
    ),
    "list/azure.jsonl": cloud("azure", "jsonl"),
    "list/vertex.jsonl": cloud("vertex", "jsonl"),
    "list/sagemaker.manifest": cloud("sagemaker", "manifest"),
}


def states(case: Case) -> tuple[list[str], list[tuple[str, list[int]]]]:
    listing = open_corpus(
        case.corpus, str(FOLDER / case.images), case.annotations and str(FOLDER / case.annotations), **case.options
    )
    rows = list(listing.images)
    vocabulary = write_listing(listing.__class__(rows, listing.vocabulary), None).vocabulary
    states_NC = label_states(rows, vocabulary).tolist()
    return vocabulary.names, [(row.uri, states_C) for row, states_C in zip(rows, states_NC, strict=True)]


@pytest.mark.parametrize("name", CASES)
def test_states(name: str) -> None:
    case = CASES[name]
    assert states(case) == (case.labels, case.states)


REFUSED: dict[str, tuple[str, str, str | None, str]] = {
    "wds_apart": (
        "webdataset",
        "wds_apart",
        None,
        r"0.tar: a.jpg and a.json belong to one sample, but are not adjacent",
    ),
    "coco_dupcatid": (
        "coco",
        "coco_dupcatid/images",
        "coco_dupcatid/a.json",
        r"categories\[1\] gives id 1 the name 'dog'",
    ),
    "list/pq_int.parquet": ("parquet", "list/images", "list/pq_int.parquet", "column labels has type .*int64"),
    "list/mld2.csv": ("csv", "list/images", "list/mld2.csv", r"line 2: labels is not a JSON list .*\[sky, clouds\]"),
    "list/csv_utf16.csv": ("csv", "list/images", "list/csv_utf16.csv", "line 1: not UTF-8"),
    "list/csv_cp1252.csv": ("csv", "list/images", "list/csv_cp1252.csv", "line 2: not UTF-8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    corpus, images, annotations, message = REFUSED[name]
    with pytest.raises(CorpusError, match=message):
        states(Case(corpus, images, annotations, [], []))


REPORTED = {
    "list/csv_commas_in_cell.csv": "1 of the first 2 cells with labels contain ',' and none contains '|'; 'cat,dog' is",
    "list/csv_semicolons_in_cell.csv": "contain ';' and none contains '|'; 'cat;dog' is read as one label",
    "list/csv_spaces_in_cell.csv": "'horse person' is read as one label; if it is several, add --label-separator \" \"",
    "wds_img2dataset": "2 samples have a caption and no labels, for example 00000.tar#000000000.jpg",
    "coco_dupname": "category 0 'lego-face' is left out: it groups other categories, and no annotation has it",
    "hf/boolcols": "columns read as one class each: Smiling, Male; columns ignored: none",
    "list/csv_onehot_uri.csv": "columns read as one class each: cat, dog; columns ignored: none",
}


@pytest.mark.parametrize("name", REPORTED)
def test_reported(name: str, capsys) -> None:
    states(CASES[name]._replace(options={}))
    assert REPORTED[name] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("corpus", "folder", "num_images"),
    [
        ("hugging_face", "hf/multihot_float", 2),
        ("webdataset", "wds_dots", 2),
        ("webdataset", "wds_apart", 2),
        ("webdataset", "wds_tgz", 1),
        ("webdataset", "wds_img2dataset", 2),
    ],
)
def test_images_to_tag_need_no_labels(corpus: str, folder: str, num_images: int) -> None:
    images = str(FOLDER / folder)
    rows = list(open_corpus(corpus, images, with_labels=False).images)
    fetched: list[Any] = list(read_images(images, rows))
    assert [row.labels for row in rows] == [None] * num_images
    assert [data[:3] for data in fetched] == [b"\xff\xd8\xff"] * num_images


def test_flags_of_other_corpora_are_refused() -> None:
    with pytest.raises(CorpusError, match="corpus folder: has no --label-separator; leave it out"):
        open_corpus("folder", str(FOLDER / "folder_split"), label_separator=",")


def test_every_input_is_in_a_table() -> None:
    """Inputs of other readers are in the tables of their tests."""
    inputs = {path.name for path in FOLDER.iterdir()} - {"list", "hf"}
    inputs |= {f"{parent}/{path.name}" for parent in ("list", "hf") for path in (FOLDER / parent).iterdir()}
    elsewhere = {
        *("list/images", "hf/names"),
        *("list/csv_backslash.csv", "list/csv_bom_crlf.csv", "list/csv_fastai.csv", "list/csv_quoted_newline.csv"),
        *("list/csv_trailing_pipe.csv", "list/jsonl_array.json", "list/jsonl_bom_crlf.jsonl", "list/mld.csv"),
        *("list/jsonl_cat_case.jsonl", "list/jsonl_comma.jsonl", "list/jsonl_dictlabels.jsonl"),
        *("list/nih.csv", "list/planet.csv"),
    }
    assert inputs - {name.split()[0] for name in CASES} - REFUSED.keys() == elsewhere
