"""Images in tar and Parquet files: listing them, and reading the bytes of all kinds of images."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tenacity
from pyarrow import fs

from sigrl_core.corpora import ListedImage, get_corpus, image_files, label_states
from sigrl_core.corpora.image_files import read_images
from sigrl_core.errors import CorpusError, ImageError, StorageError
from sigrl_core.io import storage
from sigrl_core.io.prefetch import FILES_IN_FLIGHT
from sigrl_core.io.retry import is_transient
from sigrl_core.io.store_file import StoreFile

pytestmark = pytest.mark.unit


class Store:
    """A store under gs://bucket/ that reads from a local folder and records the reads."""

    def __init__(self, root: Path) -> None:
        self.root, self.reads, self.opened = root, [], []

    def filesystem_for(self, uri: str):
        return (fs.PyFileSystem(_Handler(self)), uri.removeprefix("gs://bucket").strip("/"))


class _Handler(fs.FSSpecHandler):
    def __init__(self, store: Store) -> None:
        self.store, self.local = store, fs.LocalFileSystem()

    def get_type_name(self) -> str:
        return "test"

    def _path(self, path: str) -> str:
        return f"{self.store.root}/{path}"

    def get_file_info(self, paths):
        return self.local.get_file_info([self._path(path) for path in paths])

    def get_file_info_selector(self, selector):
        infos = self.local.get_file_info(fs.FileSelector(self._path(selector.base_dir), recursive=selector.recursive))
        start = len(str(self.store.root)) + 1
        return [
            fs.FileInfo(info.path[start:], type=info.type, size=info.size, mtime_ns=info.mtime_ns) for info in infos
        ]

    def open_input_file(self, path: str):
        self.store.opened.append(path)
        return pa.PythonFile(_File(self.store, self._path(path)), mode="r")


class _File(io.FileIO):
    def __init__(self, store: Store, path: str) -> None:
        super().__init__(path)
        self.store = store

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.store.reads.append(len(data))
        return data


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    store, local = Store(tmp_path), storage.filesystem_for
    monkeypatch.setattr(
        storage, "filesystem_for", lambda uri: store.filesystem_for(uri) if uri.startswith("gs://") else local(uri)
    )
    return store


# ---- WebDataset ----


def write_tar(path: Path, files: dict[str, bytes | dict | tarfile.TarInfo], format: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            data = json.dumps(content).encode() if isinstance(content, dict) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def image_bytes(size: int, fill: bytes = b"\xff") -> bytes:
    return fill * size


FIRST = {
    "./0001.jpg": image_bytes(70_000),
    "./0001.json": {"labels": ["dog", "cat "], "caption": "not read"},
    "0002.json": {"label": "cat", "negatives": ["bird"]},
    "0002.JPEG": image_bytes(3),
    "deep": member("deep", tarfile.DIRTYPE),
    "deep/0003.v1.png": image_bytes(4),  # its kind is v1.png
    "deep/0003.webp": image_bytes(5),
    "deep/0003.seg.png": image_bytes(6),
    "deep/0003.txt": b"bird\n\ndog\n",
    "0004.cls": b"1\n",
    "0004.gif": image_bytes(7),
    "0005.png": image_bytes(8),
    "0006.mp3": image_bytes(9),
    "._0007.jpg": image_bytes(10),
    "README": b"no sample",
}


def rows_of_first(fifth: tuple[str, ...]) -> list[tuple]:
    return [
        ("a.tar#0001.jpg", ("dog", "cat"), None, 70_000),
        ("a.tar#0002.JPEG", ("cat",), ("bird",), 3),
        ("a.tar#deep/0003.webp", ("bird", "dog"), None, 5),
        ("a.tar#0004.gif", fifth, None, 7),
        ("a.tar#0005.png", None, None, 8),
    ]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_webdataset(tmp_path, read_corpus, format: int) -> None:
    long = "x" * 120 + "/0001"
    write_tar(tmp_path / "tars/a.tar", FIRST, format)
    if format != tarfile.USTAR_FORMAT:
        write_tar(tmp_path / "tars/z/b.tar", {f"{long}.jpg": image_bytes(11), f"{long}.cls": b"2"}, format)
    (tmp_path / "names.txt").write_text("bird\ncat\ndog\n")
    rows, vocabulary = read_corpus("webdataset", tmp_path / "tars", tmp_path / "names.txt")
    assert vocabulary.names == ["bird", "cat", "dog"]
    expected = rows_of_first(("cat",))
    if format != tarfile.USTAR_FORMAT:
        expected.append((f"z/b.tar#{long}.jpg", ("dog",), None, 11))
    assert [(row.uri, row.labels, row.negatives, row.size) for row in rows] == expected
    assert label_states(rows[:5], vocabulary).tolist() == [[-1, 1, 1], [-1, 1, 0], [1, -1, 1], [-1, 1, -1], [0, 0, 0]]
    for row in rows:
        data = (tmp_path / "tars" / row.uri.partition("#")[0]).read_bytes()
        assert data[row.offset : row.offset + row.size] == image_bytes(row.size)
        assert data[row.offset - 1 : row.offset] != b"\xff"
    assert [len(data) for data in read_images(str(tmp_path / "tars"), rows)] == [row.size for row in rows]


def test_webdataset_without_class_names(tmp_path, read_corpus) -> None:
    write_tar(tmp_path / "a.tar", FIRST)
    rows, vocabulary = read_corpus("webdataset", tmp_path)
    assert [(row.uri, row.labels, row.negatives, row.size) for row in rows] == rows_of_first(("1",))
    assert vocabulary.names == ["1", "bird", "cat", "dog"]


def test_webdataset_in_a_store(tmp_path, store, read_corpus) -> None:
    """There are few requests, and the same images are listed."""
    files = {f"{n:03d}.{kind}": data for n in range(50) for kind, data in (("jpg", image_bytes(60_000)), ("cls", b"3"))}
    write_tar(tmp_path / "tars/a.tar", files)
    rows, _ = read_corpus("webdataset", "gs://bucket/tars")
    assert len(rows) == 50
    assert rows == read_corpus("webdataset", tmp_path / "tars")[0]
    assert len(store.reads) <= 4
    store.opened.clear()
    assert [len(data) for data in read_images("gs://bucket/tars", rows)] == [60_000] * 50
    assert store.opened == ["tars/a.tar"]
    assert max(store.reads[4:]) == 60_000


def test_listing_a_tar_on_a_disk_reads_no_images(tmp_path, monkeypatch) -> None:
    write_tar(tmp_path / "a.tar", {f"{n}.jpg": image_bytes(1_000_000) for n in range(10)})
    reads = []

    class Counted(io.FileIO):
        def readinto(self, buffer) -> int:
            reads.append(len(buffer))
            return super().readinto(buffer)

    monkeypatch.setattr(storage, "open_input", lambda uri: Counted(uri))
    assert len(list(get_corpus("webdataset")(str(tmp_path)).images)) == 10
    assert 0 < sum(reads) < 500_000


def damaged(data: bytes, offset: int, replacement: bytes) -> bytes:
    return data[:offset] + replacement + data[offset + len(replacement) :]


TAR = {"1.jpg": image_bytes(600), "1.json": {"labels": ["cat"]}, "2.jpg": image_bytes(600)}  # headers at 0, 1536, 2560


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: b"", "a.tar, byte 0: not a tar file, or damaged"),
        (lambda data: b"\x1f\x8b" + data, "a.tar: damaged gzip data"),
        (lambda data: data[:1300], "a.tar, byte 1536: not a tar file, or damaged .unexpected end"),
        (lambda data: data[:2000], "a.tar, byte 1536: not a tar file, or damaged"),
        (lambda data: data[:3500], "a.tar, byte 4096: not a tar file, or damaged .unexpected end"),
        (lambda data: damaged(data, 2570, b"?"), "a.tar, byte 2560: not a tar file, or damaged .neither a header nor"),
        (lambda data: damaged(data, 1536, b"?"), "a.tar, byte 1536: not a tar file, or damaged"),
    ],
)
def test_damaged_tars(tmp_path, read_corpus, spoil, message: str) -> None:
    path = write_tar(tmp_path / "a.tar", TAR)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(CorpusError, match=message):
        read_corpus("webdataset", tmp_path)


def test_a_tar_without_an_end_is_whole(tmp_path, read_corpus) -> None:
    path = write_tar(tmp_path / "a.tar", TAR)
    path.write_bytes(path.read_bytes()[:4096])
    assert [row.labels for row in read_corpus("webdataset", tmp_path)[0]] == [("cat",), None]


def huge_name(size: int) -> bytes:
    """Returns a header that declares a name of `size` bytes."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"../1.jpg": b"x"}, "a.tar, byte 0: '../1.jpg' leads out of the folder"),
        ({"/etc/1.jpg": b"x"}, "a.tar, byte 0: '/etc/1.jpg' leads out of the folder"),
        ({"1.txt": b"", "l": member("1.jpg", tarfile.SYMTYPE, "/etc/passwd")}, "a.tar, byte 512: '1.jpg' is a link"),
        ({"l": member("1.jpg", tarfile.LNKTYPE, "0.jpg")}, "'1.jpg' is a link"),
        ({"l": member("1.jpg", tarfile.FIFOTYPE)}, "'1.jpg' is a link, a device"),
        ({"1.jpg": b"x", "1.json": b"{"}, r"a.tar#1.json, byte 1536: not valid json \(Expecting"),
        ({"1.jpg": b"x", "1.json": b"[]"}, "a.tar#1.json, byte 1536: expected an object, found"),
        (
            {"1.jpg": b"x", "1.json": {"labels": {"cat": 1}}},
            "#1.json, byte 1536: labels must be texts or class numbers",
        ),
        ({"1.jpg": b"x", "1.json": {"labels": [True]}}, "labels must be texts or class numbers"),
        ({"1.jpg": b"x", "1.json": {"label": 2}}, "a.tar#1.json, byte 1536: class 2, but there are 2 class names"),
        ({"1.jpg": b"x", "1.cls": b"cat"}, "a.tar#1.cls, byte 1536: not valid cls"),
        ({"1.jpg": b"x", "1.cls": b"-1"}, "a.tar#1.cls, byte 1536: class -1, but there are 2 class names"),
        ({"1.jpg": b"x", "1.txt": b"\xff"}, "a.tar#1.txt, byte 1536: not valid txt .*utf-8"),
        ({"1.mp3": b"x"}, "no images in tars"),
    ],
)
def test_webdataset_errors(tmp_path, read_corpus, files: dict, message: str) -> None:
    write_tar(tmp_path / "a.tar", files)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    with pytest.raises(CorpusError, match=message):
        read_corpus("webdataset", tmp_path, tmp_path / "names.txt")


def test_huge_sizes_in_a_header_are_refused(tmp_path, read_corpus) -> None:
    (tmp_path / "a.tar").write_bytes(huge_name(8_000_000_000))
    with pytest.raises(
        CorpusError, match=r"a.tar, byte 0: not a tar file, or damaged \(8000000000 bytes of names or labels"
    ):
        read_corpus("webdataset", tmp_path)
    sparse = tarfile.TarInfo("1.jpg")
    sparse.type = tarfile.GNUTYPE_SPARSE
    (tmp_path / "a.tar").write_bytes(sparse.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(CorpusError, match="sparse file"):
        read_corpus("webdataset", tmp_path)


def test_webdataset_without_tars(tmp_path, read_corpus) -> None:
    with pytest.raises(CorpusError, match=r"no images in tars .* check --images"):
        read_corpus("webdataset", tmp_path)
    write_tar(tmp_path / "a.tar", {"1.jpg": b"x"})
    (tmp_path / "names.txt").write_text("\n")
    with pytest.raises(CorpusError, match=r"names.txt: no names in it"):
        read_corpus("webdataset", tmp_path, tmp_path / "names.txt")
    with pytest.raises(CorpusError, match=r"corpus webdataset: .*missing: no such file"):
        read_corpus("webdataset", tmp_path, tmp_path / "missing")


# ---- Hugging Face ----

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CLASSES = {"names": ["cat", "dog", "bird"], "_type": "ClassLabel"}


def with_features(table: pa.Table, **features) -> pa.Table:
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def image(data: bytes | None, path: str | None = None) -> dict:
    return {"bytes": data, "path": path}


def write_parquet(path: Path, table: pa.Table, row_group_size: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def classified(labels: list, kind: pa.DataType, feature, images: list | None = None) -> pa.Table:
    images = images or [image(b"%d" % n, "a.jpg") for n in range(len(labels))]
    table = pa.table({"image": pa.array(images, IMAGE), "label": pa.array(labels, kind)})
    return with_features(table, image={"_type": "Image"}, label=feature)


@pytest.mark.parametrize(
    ("labels", "kind", "feature"),
    [
        ([1, -1, 0, None], pa.int64(), CLASSES),
        ([[1], None, [0], None], pa.list_(pa.int64()), {"feature": CLASSES, "_type": "Sequence"}),
        ([[1], None, [0], None], pa.large_list(pa.int8()), {"feature": CLASSES, "_type": "List"}),
        ([[1], None, [0], None], pa.list_(pa.int64()), [CLASSES]),
    ],
)
def test_hugging_face(tmp_path, read_corpus, labels: list, kind: pa.DataType, feature) -> None:
    table = classified(labels, kind, feature)
    write_parquet(tmp_path / "data/train-00000-of-00002.parquet", table)
    write_parquet(tmp_path / "data/train-00001-of-00002.parquet", table[:1])
    rows, vocabulary = read_corpus("hugging_face", tmp_path / "data")
    assert vocabulary.names == ["cat", "dog", "bird"]
    assert rows == [
        ListedImage("train-00000-of-00002.parquet#0", ("dog",), offset=0),
        ListedImage("train-00000-of-00002.parquet#1", None, offset=1),
        ListedImage("train-00000-of-00002.parquet#2", ("cat",), offset=2),
        ListedImage("train-00000-of-00002.parquet#3", None, offset=3),
        ListedImage("train-00001-of-00002.parquet#0", ("dog",), offset=0),
    ]
    assert label_states(rows, vocabulary).tolist() == [[-1, 1, -1], [0, 0, 0], [1, -1, -1], [0, 0, 0], [-1, 1, -1]]
    assert list(read_images(str(tmp_path / "data"), rows)) == [b"0", b"1", b"2", b"3", b"0"]


def test_hugging_face_class_names(tmp_path, read_corpus) -> None:
    table = pa.table({"img": pa.array([b"a", b"b"]), "labels": pa.array([["x", "y "], []], pa.list_(pa.string()))})
    write_parquet(tmp_path / "a/0.parquet", table)
    rows, vocabulary = read_corpus("hugging_face", tmp_path / "a")
    assert rows == [ListedImage("0.parquet#0", ("x", "y"), offset=0), ListedImage("0.parquet#1", (), offset=1)]
    assert vocabulary.names == ["x", "y"]
    numbers = pa.table({"image": pa.array([b"a", b"b"], pa.large_binary()), "label": [2, 0]})
    write_parquet(tmp_path / "b/0.parquet", numbers)
    assert read_corpus("hugging_face", tmp_path / "b")[1].names == ["0", "2"]
    (tmp_path / "names.txt").write_text("cat\ndog\nbird\n")
    rows, vocabulary = read_corpus("hugging_face", tmp_path / "b", tmp_path / "names.txt")
    assert ([row.labels for row in rows], vocabulary.names) == ([("bird",), ("cat",)], ["cat", "dog", "bird"])
    assert list(read_images(str(tmp_path / "b"), rows)) == [b"a", b"b"]


def test_hugging_face_reads_the_column_that_the_schema_describes_as_labels(tmp_path, read_corpus) -> None:
    table = pa.table({"thumbnail": pa.array([b"a"]), "photo": pa.array([image(b"b")], IMAGE), "species": [1]})
    write_parquet(tmp_path / "0.parquet", with_features(table, photo={"_type": "Image"}, species=CLASSES))
    rows, _ = read_corpus("hugging_face", tmp_path)
    assert [row.labels for row in rows] == [("dog",)]
    assert list(read_images(str(tmp_path), rows)) == [b"b"]


@pytest.mark.parametrize("statistics", [True, False])
def test_hugging_face_images_by_path(tmp_path, read_corpus, statistics: bool) -> None:
    """One row group has bytes in no row, one in all rows, one in some."""
    images = [image(None, "a.jpg"), None, image(b"b", "b.jpg"), image(b"c"), image(None, "d.jpg"), image(b"e", "e.jpg")]
    table = classified([0] * 6, pa.int64(), CLASSES, images)
    pq.write_table(table, tmp_path / "0.parquet", row_group_size=2, write_statistics=statistics)
    (tmp_path / "a.jpg").write_bytes(b"file")
    rows, _ = read_corpus("hugging_face", tmp_path)
    assert [(row.uri, row.offset) for row in rows] == [
        ("a.jpg", None),
        ("0.parquet#1", 1),
        ("0.parquet#2", 2),
        ("0.parquet#3", 3),
        ("d.jpg", None),
        ("0.parquet#5", 5),
    ]
    fetched = list(read_images(str(tmp_path), rows))
    assert [result if isinstance(result, bytes) else result.reason for result in fetched] == [
        b"file",
        "empty",
        b"b",
        b"c",
        "unreachable",
        b"e",
    ]


def test_listing_parquet_reads_no_images(tmp_path, store, read_corpus) -> None:
    images = [image(bytes([n]) * 100_000, "a.jpg") for n in range(20)]
    table = classified([0] * 20, pa.int64(), CLASSES, images)
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data/0.parquet", row_group_size=10, compression="none", use_dictionary=False)
    rows, _ = read_corpus("hugging_face", "gs://bucket/data/")
    assert len(rows) == 20
    assert sum(store.reads) < 200_000
    store.opened.clear()
    assert [data[:1] for data in read_images("gs://bucket/data", rows[5:15])] == [bytes([n]) for n in range(5, 15)]
    assert store.opened == ["data/0.parquet"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"picture": ["a"]}), "0.parquet: no column of bytes, or of structs with bytes; found picture"),
        (pa.table({"a": [b"a"], "b": [b"b"]}), "0.parquet: column with images: a, b; rename the right one to image"),
        (pa.table({"image": [b"a"], "label": [0.5]}), "0.parquet: column label has type double; expected"),
        (pa.table({"image": [b"a"], "labels": [["x", None]]}), "0.parquet, row 0: a label is null"),
        (pa.table({"image": pa.array([], pa.binary())}), "no rows in the files under it"),
        (classified([0, 3], pa.int64(), CLASSES), "0.parquet, row 1: class 3, but there are 3 class names"),
        (
            with_features(pa.table({"image": [b"a"], "fine": [0], "coarse": [0]}), fine=CLASSES, coarse=CLASSES),
            "0.parquet: column with labels: fine, coarse; rename the right one to labels",
        ),
    ],
)
def test_hugging_face_errors(tmp_path, read_corpus, table: pa.Table, message: str) -> None:
    write_parquet(tmp_path / "0.parquet", table)
    with pytest.raises(CorpusError, match=message):
        read_corpus("hugging_face", tmp_path)


def test_hugging_face_files_of_several_kinds(tmp_path, read_corpus) -> None:
    with pytest.raises(CorpusError, match=r"no files \*\.parquet under it"):
        read_corpus("hugging_face", tmp_path)
    write_parquet(tmp_path / "0.parquet", classified([0], pa.int64(), CLASSES))
    write_parquet(tmp_path / "1.parquet", classified([0], pa.int64(), CLASSES | {"names": ["x"]}))
    with pytest.raises(CorpusError, match=r"1.parquet: other columns or class names than in the first file"):
        read_corpus("hugging_face", tmp_path)
    (tmp_path / "1.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorpusError, match=r"1.parquet: cannot be read as Parquet"):
        read_corpus("hugging_face", tmp_path)


# ---- bytes of rows ----


def reasons(fetched: Iterator[bytes | ImageError]) -> list[bytes | str]:
    return [result if isinstance(result, bytes) else result.reason for result in fetched]


def test_images_of_all_kinds_in_one_list(tmp_path) -> None:
    write_tar(tmp_path / "#/a.TAR", {"1#x.jpg": b"one", "2.jpg": b"two"})
    in_tar = list(get_corpus("webdataset")(str(tmp_path)).images)
    write_parquet(tmp_path / "p.parquet", pa.table({"image": [b"p0", b"p1", b"p2"]}))
    (tmp_path / "1.jpg").write_bytes(b"file")
    p = [ListedImage(f"p.parquet#{n}", None, offset=n) for n in range(4)]
    rows = [
        in_tar[1],
        in_tar[0],
        ListedImage("1.jpg", None),
        p[2],
        p[0],
        p[3],
        ListedImage("#.jpg", None),
        in_tar[0],
        p[1],
    ]
    assert reasons(read_images(str(tmp_path), rows)) == [
        b"two",
        b"one",
        b"file",
        b"p2",
        b"p0",
        "truncated",
        "unreachable",
        b"one",
        b"p1",
    ]
    assert list(read_images(str(tmp_path), [])) == []


def test_what_cannot_be_read(tmp_path, monkeypatch) -> None:
    path = write_tar(tmp_path / "a.tar", {"1.jpg": b"one", "2.jpg": image_bytes(600)})
    rows = list(get_corpus("webdataset")(str(tmp_path)).images)
    path.write_bytes(path.read_bytes()[:1600])
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    (tmp_path / "big.jpg").write_bytes(image_bytes(101))
    rows += [
        ListedImage("gone.tar#1.jpg", None, size=1, offset=512),
        ListedImage("gone.tar#2.jpg", None, size=1, offset=1536),
        ListedImage("gone.parquet#0", None, offset=0),
        ListedImage("b.parquet#0", None, offset=0),
        ListedImage("gone.jpg", None),
        ListedImage("http://host/a.jpg", None),
        ListedImage("a\0b.jpg", None),
        ListedImage("big.jpg", None),
        ListedImage("a.tar#1.jpg", None, size=101, offset=512),
    ]
    monkeypatch.setattr(image_files, "MAX_FILE_BYTES", 100)
    rows[1] = rows[1]._replace(size=90, offset=1536)
    fetched = list(read_images(str(tmp_path), rows))
    assert reasons(iter(fetched)) == [
        b"one",
        "truncated",
        *["unreachable"] * 3,
        "truncated",
        *["unreachable"] * 5,
    ]
    assert "gone.tar" in str(fetched[2])
    assert "101 bytes; at most 100" in str(fetched[-1])


def test_a_failing_store_is_no_failure_of_images(tmp_path, store, monkeypatch) -> None:
    """The error is raised for files and containers, after the results before it."""
    path = write_tar(tmp_path / "a.tar", {"1.jpg": b"one", "2.jpg": b"two"})
    rows = list(get_corpus("webdataset")(str(tmp_path)).images)
    read = _File.read

    def fail(self, size: int | None = -1, /) -> bytes:
        raise OSError("AWS Error NETWORK_CONNECTION during GetObject")

    monkeypatch.setattr(_File, "read", fail)
    monkeypatch.setattr(StoreFile.read_at.retry, "stop", tenacity.stop_after_attempt(2))  # pyright: ignore[reportFunctionMemberAccess]
    for listed in (rows, [ListedImage("p.parquet#0", None, offset=0)]):
        (tmp_path / "p.parquet").write_bytes(path.read_bytes())
        with pytest.raises(StorageError, match="the store does not answer") as caught:
            list(read_images("gs://bucket", listed))
        assert is_transient(caught.value)
    monkeypatch.setattr(_File, "read", read)
    assert list(read_images("gs://bucket", rows)) == [b"one", b"two"]


def test_files_of_a_store_are_read_ahead(tmp_path, store) -> None:
    rows = [ListedImage(f"{n}.jpg", None) for n in range(30)]
    for n, row in enumerate(rows):
        (tmp_path / row.uri).write_bytes(b"%d" % n)
    fetched = read_images("gs://bucket", rows)
    assert next(fetched) == b"0"
    assert len(store.opened) <= FILES_IN_FLIGHT + 1
    assert list(fetched) == [b"%d" % n for n in range(1, 30)]
