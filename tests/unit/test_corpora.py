import json
from functools import partial

import numpy as np
import pytest

from sigrl_core.corpora import CORPORA, ListedImage, Listing, apply_label_policy, get_corpus, label_states
from sigrl_core.corpora.listing_file import ListingSummary, write_listing
from sigrl_core.errors import CorpusError
from sigrl_core.io.checksums import sha256_of
from sigrl_core.labels.vocabulary import Label, Vocabulary

pytestmark = pytest.mark.unit


def write(path, content) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_an_unknown_corpus_is_an_error_with_the_known_ones() -> None:
    with pytest.raises(CorpusError, match=", ".join(CORPORA)):
        get_corpus("voc2")


def test_folder_reads_labels_from_sub_folders(images, read_corpus) -> None:
    rows, vocabulary = read_corpus("folder", images)
    assert vocabulary.names == ["cat", "dog"]
    assert [row.uri for row in rows] == sorted(row.uri for row in rows)
    assert rows[0] == ListedImage("cat/00.jpg", ("cat",), size=(images / "cat/00.jpg").stat().st_size)
    (images / "top.PNG").write_bytes(b"")
    (images / "dog" / "deep").mkdir()
    (images / "dog" / "deep" / "1.webp").write_bytes(b"")
    (images / "notes.txt").write_bytes(b"")
    rows = {row.uri: row.labels for row in read_corpus("folder", images)[0]}
    assert len(rows) == 14
    assert rows["top.PNG"] is None
    assert rows["dog/deep/1.webp"] == ("dog",)


def test_flat_folder_has_no_labels(images, read_corpus) -> None:
    rows, vocabulary = read_corpus("folder", images / "cat")
    assert len(vocabulary) == 0
    assert {row.labels for row in rows} == {None}
    assert label_states(rows, vocabulary).shape == (6, 0)


def test_folder_errors(tmp_path, images, read_corpus) -> None:
    list_corpus = partial(read_corpus, "folder")
    with pytest.raises(CorpusError, match="no such folder"):
        list_corpus(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"no image files under it, by ending \(.jpg, .*\) or content; check"):
        list_corpus(tmp_path / "empty")
    with pytest.raises(CorpusError, match="takes no annotations"):
        list_corpus(images, "a.json")
    with pytest.raises(CorpusError, match="expected the folder"):
        list_corpus(images / "cat" / "00.jpg")


def test_jsonl(tmp_path, read_corpus) -> None:
    lines = [
        '{"uri": "a.jpg", "labels": ["dog", "cat"]}',
        "",
        '{"uri": "s3://bucket/b.jpg", "labels": ["cat"], "negatives": ["bird"]}',
        '{"uri": "c.jpg"}',
    ]
    annotations = write(tmp_path / "a.jsonl", "\ufeff" + "\r\n".join(lines))
    rows, vocabulary = read_corpus("jsonl", tmp_path, annotations)
    assert rows == [
        ListedImage("a.jpg", ("dog", "cat"), None),
        ListedImage("s3://bucket/b.jpg", ("cat",), ("bird",)),
        ListedImage("c.jpg", None, None),
    ]
    assert vocabulary.names == ["bird", "cat", "dog"]
    assert label_states(rows, vocabulary).tolist() == [[-1, 1, 1], [-1, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"uri": "a"}\n{"uri": ', "line 2: not valid JSON"),
        ('{"uri": "a"}\n["a"]', 'line 2: expected an object with a text "uri"'),
        ('{"uri": 1}', 'text "uri"'),
        ('{"url": "a"}', "line 1: no key 'uri'; found 'url'; rename"),
        ('{"uri": "a", "lables": ["x"]}', "unknown key 'lables'; did you mean 'labels'"),
        (
            '{"uri": "a", "tags": ["x"], "label": "y"}',
            "keys 'tags', 'label' may each be 'labels'; rename the right one",
        ),
        ('{"uri": "a", "labels": "x"}', "labels must be a list of texts"),
        ("\n\n", "no rows"),
        ('{"uri": "a", "labels": ["x", " "]}', "a: an empty label"),
    ],
)
def test_jsonl_errors(tmp_path, read_corpus, content: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        read_corpus("jsonl", tmp_path, write(tmp_path / "a.jsonl", content))


def coco() -> dict:
    return {
        "images": [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}, {"id": 4, "file_name": "c.jpg"}],
        "annotations": [
            {"image_id": 3, "category_id": 90},
            {"image_id": 3, "category_id": 1, "iscrowd": 1},
            {"image_id": 3, "category_id": 90},
            {"image_id": 7, "category_id": 1},
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush "}],
    }


def test_coco(tmp_path, read_corpus) -> None:
    rows, vocabulary = read_corpus("coco", tmp_path, write(tmp_path / "a.json", coco()))
    assert vocabulary.names == ["person", "toothbrush"]
    assert [row.uri for row in rows] == ["b.jpg", "a.jpg", "c.jpg"]
    assert label_states(rows, vocabulary).tolist() == [[1, -1], [1, 1], [-1, -1]]


def test_coco_errors(tmp_path) -> None:
    def fails(match: str, content) -> None:
        with pytest.raises(CorpusError, match=match):
            get_corpus("coco")(str(tmp_path), write(tmp_path / "a.json", content))

    with pytest.raises(CorpusError, match="add --annotations"):
        get_corpus("coco")(str(tmp_path), None)
    with pytest.raises(CorpusError, match="no such file"):
        get_corpus("coco")(str(tmp_path), str(tmp_path / "missing.json"))
    fails("line 2", '{"images":\n oops')
    fails("no list 'categories'", [])
    fails(
        r"annotations\[4\] has category_id 5",
        coco() | {"annotations": [*coco()["annotations"], {"image_id": 3, "category_id": 5}]},
    )
    fails(r"images\[1\] has no file_name", coco() | {"images": [coco()["images"][0], {"id": 3}, {"id": 4}]})
    fails("images is empty", coco() | {"images": []})
    fails(
        r"categories\[1\] gives id 1 the name 'y', .* 'x'",
        coco() | {"categories": [{"id": 1, "name": n} for n in "xy"]},
    )


def test_unseen_labels_stay_unknown_when_only_seen_ones_were_annotated() -> None:
    vocabulary = Vocabulary((Label(name="cat"), Label(name="okapi", group="unseen"), Label(name="dog")))
    rows = [
        ListedImage("a", ("cat",)),
        ListedImage("b", ("okapi",)),
        ListedImage("c", None),
        ListedImage("d", (), ("okapi",)),
    ]
    states = label_states(rows, vocabulary, "seen")
    assert states.dtype == np.int8
    assert states.tolist() == [[1, 0, -1], [-1, 1, -1], [0, 0, 0], [0, -1, 0]]
    assert label_states(rows[:1], vocabulary, "all").tolist() == [[1, -1, -1]]


def test_label_policies() -> None:
    states = np.array([1, -1, 0, 1, -1, 1], np.int8)
    assert apply_label_policy(states, "full", "00", 0) is states
    assert apply_label_policy(states, "positives-only", "00", 0).tolist() == [1, 0, 0, 1, 0, 1]
    shas = [sha256_of(bytes([n])) for n in range(200)]
    kept = [apply_label_policy(states, "single-positive", sha, 0) for sha in shas]
    assert {tuple(np.flatnonzero(states_C)) for states_C in kept} == {(0,), (3,), (5,)}
    assert all((states_C[states_C != 0] == 1).all() for states_C in kept)
    counts = np.sum(kept, 0)[[0, 3, 5]]
    assert counts.min() > 45, counts  # a third of 200 each; 45 is three standard deviations less
    assert all(
        np.array_equal(apply_label_policy(states, "single-positive", sha, 0), states_C)
        for sha, states_C in zip(shas, kept, strict=True)
    )
    other = [apply_label_policy(states, "single-positive", sha, 1) for sha in shas]
    assert sum(map(np.array_equal, kept, other)) < 110  # another seed keeps a third of the choices
    nothing = np.array([-1, 0], np.int8)
    assert apply_label_policy(nothing, "single-positive", "00", 0).tolist() == [0, 0]


def test_labels_that_are_not_in_the_vocabulary() -> None:
    vocabulary = Vocabulary.from_names(["traffic light", "dog"])

    def summarise(*rows: ListedImage) -> ListingSummary:
        return write_listing(Listing(rows), None, vocabulary)

    with pytest.raises(CorpusError, match=r"x.jpg: label 'trafic light' .* did you mean 'traffic light'"):
        summarise(ListedImage("x.jpg", ("trafic light",)))
    with pytest.raises(CorpusError, match="of 2 labels"):
        summarise(ListedImage("y.jpg", ("dog",)), ListedImage("x.jpg", ("zebra",)))
    with pytest.raises(CorpusError, match="both in labels and in negatives"):
        summarise(ListedImage("x.jpg", ("dog",), ("dog",)))
    assert summarise(ListedImage("x.jpg", ("dog",))).vocabulary == vocabulary


@pytest.mark.parametrize("row", [("x.jpg", ("\ud800",)), ("\udfff.jpg", None), ("x.jpg", (), ("a\udc00",))])
def test_half_of_a_surrogate_pair_is_refused(row: tuple) -> None:
    valid = ListedImage("🦓.jpg", ("ä 🦓",))
    with pytest.raises(CorpusError, match=r"image '.+\.jpg': '.*\\ud.*' is not valid Unicode"):
        write_listing(Listing([valid, ListedImage(*row)]), None)


FILES = (
    *("jsonl", "csv", "parquet", "coco", "voc", "yolo", "open_images", "nus_wide", "nus_wide_81"),
    *("cvat", "label_studio", "create_ml", "azure", "vertex", "sagemaker", "chexpert", "celeba", "label_matrix"),
)
FOLDERS = ("cub", "cub_train", "cub_test")


@pytest.mark.parametrize("corpus", FILES + FOLDERS)
def test_wrong_paths_of_annotations(tmp_path, corpus: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    list_corpus = get_corpus(corpus)
    with pytest.raises(CorpusError, match=f"corpus {corpus}: needs an annotation file, none given"):
        list_corpus(str(tmp_path), None)
    with pytest.raises(CorpusError, match=f"corpus {corpus}: .*/missing: no such file"):
        list_corpus(str(tmp_path), str(tmp_path / "missing"))
    wrong = ("folder", "a folder, expected a file") if corpus in FILES else ("file", "a file, expected the folder")
    with pytest.raises(CorpusError, match=f"corpus {corpus}: .*/{wrong[0]}: {wrong[1]}"):
        list_corpus(str(tmp_path), str(tmp_path / wrong[0]))


@pytest.mark.parametrize("corpus", sorted(CORPORA.keys() - {"jsonl", "csv", "parquet"}))
def test_wrong_paths_of_images(tmp_path, corpus: str) -> None:
    """All corpora require the folder of images, except lists, which may contain absolute locations."""
    (tmp_path / "TestImagelist.txt").write_bytes(b"x")
    annotations = dict.fromkeys(("folder", "files", "shards", "webdataset", "hugging_face")) | dict.fromkeys(
        FOLDERS, str(tmp_path)
    )
    for images, message in (("missing", "no such folder of images"), ("TestImagelist.txt", "expected the folder")):
        with pytest.raises(CorpusError, match=f"{images}: .*{message}"):
            get_corpus(corpus)(str(tmp_path / images), annotations.get(corpus, str(tmp_path / "TestImagelist.txt")))
