import json
from functools import partial

import numpy as np
import pytest

from sigrl_core.corpora import CORPORA, Listing, Row, get_corpus, label_states, told
from sigrl_core.corpora.listing_file import Listed, write_listing
from sigrl_core.errors import CorpusError
from sigrl_core.records import sha256_of
from sigrl_core.vocabulary import Label, Vocabulary

pytestmark = pytest.mark.unit


def write(path, content) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_unknown_corpora_list_the_known_ones() -> None:
    with pytest.raises(CorpusError, match=", ".join(CORPORA)):
        get_corpus("voc2")


def test_folder_takes_labels_from_sub_folders(pictures, read_corpus) -> None:
    rows, vocabulary = read_corpus("folder", pictures)
    assert vocabulary.names == ["cat", "dog"]
    assert [row.uri for row in rows] == sorted(row.uri for row in rows)
    assert rows[0] == Row("cat/00.jpg", ("cat",), size=(pictures / "cat/00.jpg").stat().st_size)
    (pictures / "top.PNG").write_bytes(b"")
    (pictures / "dog" / "deep").mkdir()
    (pictures / "dog" / "deep" / "1.webp").write_bytes(b"")
    (pictures / "notes.txt").write_bytes(b"")
    rows = {row.uri: row.labels for row in read_corpus("folder", pictures)[0]}
    assert len(rows) == 14
    assert rows["top.PNG"] is None
    assert rows["dog/deep/1.webp"] == ("dog",)


def test_flat_folder_has_no_labels(pictures, read_corpus) -> None:
    rows, vocabulary = read_corpus("folder", pictures / "cat")
    assert len(vocabulary) == 0
    assert {row.labels for row in rows} == {None}
    assert label_states(rows, vocabulary).shape == (6, 0)


def test_folder_errors(tmp_path, pictures, read_corpus) -> None:
    list_corpus = partial(read_corpus, "folder")
    with pytest.raises(CorpusError, match="no such folder"):
        list_corpus(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"no image files with suffixes .jpg, .* under it"):
        list_corpus(tmp_path / "empty")
    with pytest.raises(CorpusError, match="takes no annotations"):
        list_corpus(pictures, "a.json")
    with pytest.raises(CorpusError, match="expected the folder"):
        list_corpus(pictures / "cat" / "00.jpg")


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
        Row("a.jpg", ("dog", "cat"), None),
        Row("s3://bucket/b.jpg", ("cat",), ("bird",)),
        Row("c.jpg", None, None),
    ]
    assert vocabulary.names == ["bird", "cat", "dog"]
    assert label_states(rows, vocabulary).tolist() == [[-1, 1, 1], [-1, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"uri": "a"}\n{"uri": ', "line 2: not valid JSON"),
        ('{"uri": "a"}\n["a"]', 'line 2: expected an object with a text "uri"'),
        ('{"url": "a"}', 'text "uri"'),
        ('{"uri": "a", "label": ["x"]}', "unknown key 'label'; known are uri, labels, negatives"),
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
    fails(r"images\[0\] has no file_name", coco() | {"images": [{"id": 1}]})
    fails("images is empty", coco() | {"images": []})
    fails(r"label\(s\) listed", coco() | {"categories": [{"id": 1, "name": "x"}, {"id": 90, "name": "x"}]})


def test_unseen_labels_stay_unknown_when_only_seen_ones_were_annotated() -> None:
    vocabulary = Vocabulary((Label(name="cat"), Label(name="okapi", split="unseen"), Label(name="dog")))
    rows = [Row("a", ("cat",)), Row("b", ("okapi",)), Row("c", None), Row("d", (), ("okapi",))]
    states = label_states(rows, vocabulary, "seen")
    assert states.dtype == np.int8
    assert states.tolist() == [[1, 0, -1], [-1, 1, -1], [0, 0, 0], [0, -1, 0]]
    assert label_states(rows[:1], vocabulary, "all").tolist() == [[1, -1, -1]]


def test_what_training_is_told() -> None:
    states = np.array([1, -1, 0, 1, -1, 1], np.int8)
    assert told(states, "full", "00", 0) is states
    assert told(states, "positives-only", "00", 0).tolist() == [1, 0, 0, 1, 0, 1]
    shas = [sha256_of(bytes([n])) for n in range(200)]
    kept = [told(states, "single-positive", sha, 0) for sha in shas]
    assert {tuple(np.flatnonzero(one)) for one in kept} == {(0,), (3,), (5,)}
    assert all((one[one != 0] == 1).all() for one in kept)
    counts = np.sum(kept, 0)[[0, 3, 5]]
    assert counts.min() > 45, counts  # of 200 a third each; 45 is three standard deviations below
    assert all(
        np.array_equal(told(states, "single-positive", sha, 0), one) for sha, one in zip(shas, kept, strict=True)
    )
    other = [told(states, "single-positive", sha, 1) for sha in shas]
    assert sum(map(np.array_equal, kept, other)) < 110  # the seed draws anew: a third stays the same
    nothing = np.array([-1, 0], np.int8)
    assert told(nothing, "single-positive", "00", 0).tolist() == [0, 0]


def test_labels_that_the_vocabulary_lacks() -> None:
    vocabulary = Vocabulary.of(["traffic light", "dog"])

    def look(*rows: Row) -> Listed:
        return write_listing(Listing(rows), None, vocabulary)

    with pytest.raises(CorpusError, match=r"x.jpg: label 'trafic light' .* did you mean 'traffic light'"):
        look(Row("x.jpg", ("trafic light",)))
    with pytest.raises(CorpusError, match="of 2 labels"):
        look(Row("y.jpg", ("dog",)), Row("x.jpg", ("zebra",)))
    with pytest.raises(CorpusError, match="both in labels and in negatives"):
        look(Row("x.jpg", ("dog",), ("dog",)))
    assert look(Row("x.jpg", ("dog",))).vocabulary == vocabulary


FILES = ("jsonl", "csv", "parquet", "coco", "voc", "yolo", "open_images", "nus_wide", "nus_wide_81")
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
def test_wrong_paths_of_pictures(tmp_path, corpus: str) -> None:
    """Lists may have locations of their own and need no folder; all others do."""
    (tmp_path / "TestImagelist.txt").write_bytes(b"x")
    annotations = dict.fromkeys(("folder", "files", "shards", "webdataset", "hugging_face")) | dict.fromkeys(
        FOLDERS, str(tmp_path)
    )
    for images, message in (("missing", "no such folder of pictures"), ("TestImagelist.txt", "expected the folder")):
        with pytest.raises(CorpusError, match=f"{images}: .*{message}"):
            get_corpus(corpus)(str(tmp_path / images), annotations.get(corpus, str(tmp_path / "TestImagelist.txt")))
