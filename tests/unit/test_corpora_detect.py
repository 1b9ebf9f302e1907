"""`--corpus auto`: every known format is recognised, what is not clear is refused, and little is read."""

import contextlib
import gzip
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sigrl_core.config import PreprocessConfig
from sigrl_core.corpora import detect
from sigrl_core.corpora.detect import HEAD_BYTES, MAX_NAMES, detect_corpus
from sigrl_core.errors import CorpusError, SigrlError
from sigrl_core.io import storage
from sigrl_core.io.resumable_job import ResumableJob
from sigrl_core.on_ray.preprocess import _with_detected_corpus
from sigrl_core.plugins import CORPORA
from tests.unit.test_annotation_cases import CASES
from tests.unit.test_annotation_cases import FOLDER as CASES_FOLDER
from tests.unit.test_corpora_formats import BESIDE_IMAGES, EXAMPLE, FORMATS, write

pytestmark = pytest.mark.unit

XML = "<annotation><filename>a.jpg</filename><object><name>cat</name></object></annotation>"


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        write(folder / name, content)


def table(**columns: list) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    return file.getvalue()


COCO = json.dumps({"info": {"x": "y" * 90_000}, "images": [{"id": 1}], "annotations": [], "categories": [{"id": 1}]})
HUGGING_FACE = {"train.parquet": table(image=[{"bytes": b"x", "path": "a"}])}
YOLO = {"images/train/a.jpg": "", "labels/train/a.txt": "0 1 1 1 1"}

FOLDERS: dict[str, tuple[Mapping[str, str | bytes], str, str | None, str]] = {
    # name of the case: files, --images, --annotations, a part of the reason
    "folder": ({"cat/a.jpg": "", "dog/b.jpg": ""}, "", None, "images in sub-folders, such as cat/a.jpg"),
    "folder without labels": ({"a.jpg": ""}, "", None, "images, such as a.jpg, and no annotations"),
    "webdataset": ({"0.tar": tar()}, "", None, "it has 0.tar"),
    "webdataset, names": ({"0.tar": tar(), "../names.txt": "cat\n"}, "", "../names.txt", "has 0.tar"),
    "hugging_face": (HUGGING_FACE, "", None, "it has train.parquet"),
    "hugging_face, names": ({**HUGGING_FACE, "../names.txt": "cat\n"}, "", "../names.txt", "has train.parquet"),
    "arrow": ({"data-00000-of-00001.arrow": b"", "state.json": "{}"}, "", None, "it has data-00000-of-00001.arrow"),
    "image_folder": ({"train/metadata.jsonl": "", "train/a.jpg": ""}, "", None, "it has train/metadata.jsonl"),
    "voc_xml": ({"a.jpg": "", "a.xml": XML}, "", None, "a.xml is an annotation of VOC"),
    "voc_xml, apart": ({"images/a.jpg": "", "xml/a.xml": XML}, "images", "xml", "a.xml is an annotation of VOC"),
    "roboflow": ({"train/_classes.csv": "filename,cat\n", "train/a.jpg": ""}, "", None, "it has train/_classes.csv"),
    "fiftyone": ({"data/a.jpg": "", "labels.json": "{}"}, "", None, "it has labels.json and data"),
    "coco": ({"a.json": COCO}, "", "a.json", "a.json has the keys images, annotations, categories"),
    "coco, compressed": (
        {"a.json.gz": gzip.compress(COCO.replace("y" * 90_000, "").encode())},
        "",
        "a.json.gz",
        "keys",
    ),
    "voc": (
        {"ImageSets/Main/train.txt": "a\n", "JPEGImages/a.jpg": ""},
        "JPEGImages",
        "ImageSets/Main/train.txt",
        "Sets",
    ),
    "yolo": ({**YOLO, "data.yaml": "path: x\nnames: [cat]\n"}, "images", "data.yaml", "names of classes"),
    "yolo, names": ({**YOLO, "classes.txt": "cat\n"}, "images", "classes.txt", "train/a.jpg has a text file"),
    "open_images": ({"a.csv": "ImageID,Source,LabelName,Confidence\n"}, "", "a.csv", "ImageID and LabelName"),
    "csv": ({"a.csv": "uri,labels\na.jpg,cat\n"}, "", "a.csv", "a.csv has the column uri"),
    "csv, tabs": ({"a.tsv": "uri\tlabels\na.jpg\tcat\n"}, "", "a.tsv", "a.tsv has the column uri"),
    "jsonl": ({"a.jsonl": '\ufeff{"labels": ["cat"], "uri": "a.jpg"}\n{"uri": "b.jpg"}\n'}, "", "a.jsonl", "key uri"),
    "jsonl, compressed": ({"a.gz": gzip.compress(b'{"uri": "b.jpg"}\n')}, "", "a.gz", "key uri"),
    "parquet": ({"a.parquet": table(uri=["a.jpg"])}, "", "a.parquet", "a.parquet is a Parquet file"),
    "cub": ({"images.txt": "", "attributes/x.txt": "", "images/a.jpg": ""}, "images", "", "images.txt and attributes"),
    "nus_wide_81": ({"ConceptsList/x": "", "ImageList/Imagelist.txt": "a"}, "", "ImageList/Imagelist.txt", "NUS-WIDE"),
    "celeba": ({"a.csv": "image_id,Male\na.jpg,-1\n"}, "", "a.csv", "image_id and columns of 1 and -1"),
}
"""Existing corpora, as their own documentation lays them out."""


@pytest.mark.parametrize("case", FOLDERS)
def test_known_corpora(tmp_path: Path, case: str) -> None:
    files, images, annotations, reason = FOLDERS[case]
    folder = tmp_path / "corpus"
    write_files(folder, files)
    detected = detect_corpus(str(folder / images), annotations if annotations is None else str(folder / annotations))
    assert detected.corpus == case.partition(",")[0].partition(" ")[0]
    assert reason in detected.reason


@pytest.mark.parametrize("corpus", FORMATS)
def test_formats_of_other_tools(tmp_path: Path, corpus: str) -> None:
    annotations = FORMATS[corpus].write(EXAMPLE, tmp_path)
    assert detect_corpus(str(tmp_path), None if corpus in BESIDE_IMAGES else str(annotations)).corpus == corpus


@pytest.mark.parametrize("name", CASES)
def test_files_of_other_tools(name: str) -> None:
    case = CASES[name]
    annotations = None if case.annotations is None else str(CASES_FOLDER / case.annotations)
    assert detect_corpus(str(CASES_FOLDER / case.images), annotations).corpus == case.corpus


def test_shards(tmp_path: Path) -> None:
    write(tmp_path / "manifest.json", {"kind": "shards"})
    write(tmp_path / "shards/0.parquet", "")
    assert detect_corpus(str(tmp_path)).corpus == "shards"


def test_every_corpus_has_a_case() -> None:
    recognised = {case.partition(",")[0].partition(" ")[0] for case in FOLDERS} | set(FORMATS) | {"shards", "nus_wide"}
    named_only = {"files", "cub_train", "cub_test"}  # other readings of a folder or of cub, which have to be named
    assert set(CORPORA) - recognised - set(CORPORA.registered()) == named_only


NUS_WIDE = {"NUS_WID_Tags/x": "", "ConceptsList/x": "", "ImageList/TestImagelist.txt": "a"}


@pytest.mark.parametrize(
    ("files", "annotations", "messages"),
    [
        (NUS_WIDE, "ImageList/TestImagelist.txt", ["--corpus nus_wide, because", "--corpus nus_wide_81, because"]),
        (
            {"0.tar": b"", "a.parquet": b""},
            None,
            ["--corpus webdataset, because it has 0.tar"],
        ),
        (
            {"cat/a.jpg": "", "a.json": COCO},
            None,
            ["--corpus folder, because", "--corpus coco --annotations"],
        ),
        (
            {"a.jpg": "", "a.csv": "uri\n"},
            None,
            ["choose the format of the corpus, --corpus csv --annot"],
        ),
        ({"a.txt": "text"}, None, ["not recognised .*; name it with --corpus"]),
        ({"a.csv": "name,sort\na,b\n"}, "a.csv", ["a.csv: not recognised .*; name it with --corpus"]),
        ({"a.json": "[1, 2]"}, "a.json", ["not recognised"]),
        ({"a.xml": "<annotation/>"}, "a.xml", ["not recognised"]),
        ({"a.txt": ""}, "a.txt", ["not recognised"]),
        ({"a.gz": b"\x1f\x8bnonsense"}, "a.gz", ["not recognised"]),
        ({"sub/a.md": ""}, "sub", ["not recognised"]),
        ({"a.jpg": ""}, "b.csv", ["b.csv: no such file"]),
    ],
)
def test_refusals(tmp_path: Path, files: dict, annotations: str | None, messages: list[str]) -> None:
    write_files(tmp_path, files)
    with pytest.raises(CorpusError) as raised:
        detect_corpus(str(tmp_path), annotations and str(tmp_path / annotations))
    assert "\n" not in str(raised.value)
    for message in messages:
        assert re.search(message, str(raised.value)), raised.value


def test_images_that_are_missing_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no such folder of images"):
        detect_corpus(str(tmp_path / "x"))
    with pytest.raises(CorpusError, match="a file, expected the folder of the images"):
        detect_corpus(str(write(tmp_path / "a.csv", "uri\n")))


def test_little_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large folder: one page of names, the first and last bytes of a few files, and a few requests."""
    (tmp_path / "images").mkdir()
    for number in range(3 * MAX_NAMES):
        (tmp_path / f"images/{number:05}.jpg").touch()
    for number in range(50):
        write(tmp_path / f"images/{number:05}.json", COCO.replace("y" * 90_000, "y" * 500_000))
    requests, names, num_bytes = [], [], []
    real_open, real_walk = storage.open_input, storage.walk

    @contextlib.contextmanager
    def open_input(uri: str) -> Iterator[SimpleNamespace]:
        requests.append(uri)
        with real_open(uri) as file:

            def read_at(count: int, start: int) -> bytes:
                num_bytes.append(count)
                return file.read_at(count, start)

            yield SimpleNamespace(size=file.size, read_at=read_at)

    def walk(uri: str):
        requests.append(uri)
        for file in real_walk(uri):
            names.append(file.path)
            yield file

    def count(name: str) -> Callable:
        function = getattr(storage, name)
        return lambda uri: [requests.append(uri), function(uri)][1]

    monkeypatch.setattr(detect.storage, "open_input", open_input)
    monkeypatch.setattr(detect.storage, "walk", walk)
    for name in ("exists", "is_folder"):
        monkeypatch.setattr(detect.storage, name, count(name))
    with pytest.raises(CorpusError, match="--corpus coco --annotations"):
        detect_corpus(str(tmp_path / "images"))
    assert len(names) == MAX_NAMES
    assert max(num_bytes) <= HEAD_BYTES
    assert len(requests) <= 25


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["a.json", "a.csv", "a.txt", "a.xml", "a.yaml", "a.gz", "a"]),
    content=st.binary(max_size=60)
    | st.text(max_size=60).map(str.encode)
    | st.lists(st.sampled_from(["{", "}", "[", "]", '"uri"', ":", ",", '"labels"', '"\\ud800"', "1", "<a ", "\n"])).map(
        lambda parts: "".join(parts).encode()
    ),
)
def test_any_file_is_recognised_or_refused(tmp_path: Path, name: str, content: bytes) -> None:
    file = write(tmp_path / "any" / name, content)
    try:
        detected = detect_corpus(str(tmp_path), str(file))
    except SigrlError:
        return
    assert detected.corpus in CORPORA


# ---- what preprocess does with it ----


def config(tmp_path: Path, corpus: str = "auto") -> PreprocessConfig:
    return PreprocessConfig(corpus=corpus, images=str(tmp_path / "images"), out=str(tmp_path / "out"))


def test_preprocess_prints_and_plans_the_detected_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "images/cat/a.jpg", "")
    job = ResumableJob(str(tmp_path / "out"))
    resolved = _with_detected_corpus(config(tmp_path), job)
    assert resolved.corpus == "folder"
    assert capsys.readouterr().err == "corpus: folder, because it has images in sub-folders, such as cat/a.jpg\n"
    write(tmp_path / "out/plan.json", {"corpus": "files"})  # a folder that was started keeps its corpus
    assert _with_detected_corpus(config(tmp_path), job).corpus == "files"


def test_a_named_corpus_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = config(tmp_path, corpus="coco")
    assert _with_detected_corpus(named, ResumableJob(str(tmp_path / "out"))) is named
    assert not any(capsys.readouterr())
