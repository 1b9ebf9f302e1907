"""Lists of images in tables: CSV and Parquet."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sigrl_core.corpora import ListedImage, get_corpus, label_states
from sigrl_core.errors import CorpusError

pytestmark = pytest.mark.unit


def test_csv(tmp_path, read_corpus) -> None:
    lines = [
        "split,uri,labels,negatives",
        "train,a.jpg,dog|cat,",
        "",
        "train,s3://bucket/b.jpg,cat,bird | fish",
        'test,"c, d.jpg","[""black | white"", ""cat""]",bird',
        "test,e.jpg,,",
        "test,f.jpg,[],bird",
    ]
    (tmp_path / "a.csv").write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    rows, vocabulary = read_corpus("csv", tmp_path, tmp_path / "a.csv")
    assert rows == [
        ListedImage("a.jpg", ("dog", "cat"), ()),
        ListedImage("s3://bucket/b.jpg", ("cat",), ("bird", "fish")),
        ListedImage("c, d.jpg", ("black | white", "cat"), ("bird",)),
        ListedImage("e.jpg", None, ()),
        ListedImage("f.jpg", (), ("bird",)),
    ]
    assert vocabulary.names == ["bird", "black | white", "cat", "dog", "fish"]
    assert label_states(rows, vocabulary).tolist() == [
        [0, 0, 1, 1, 0],
        [-1, 0, 1, 0, -1],
        [-1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0],
        [-1, 0, 0, 0, 0],
    ]


def test_csv_without_negatives_makes_other_labels_absent(tmp_path, read_corpus) -> None:
    (tmp_path / "a.csv").write_text("labels,uri\ncat,a.jpg\n,b.jpg\n[],c.jpg\ndog,d.jpg\n")
    rows, vocabulary = read_corpus("csv", tmp_path, tmp_path / "a.csv")
    assert label_states(rows, vocabulary).tolist() == [[1, -1], [0, 0], [-1, -1], [-1, 1]]
    (tmp_path / "b.csv").write_text("uri\na.jpg\nb.jpg\n")  # images to tag need no labels
    assert read_corpus("csv", tmp_path, tmp_path / "b.csv")[0] == [
        ListedImage("a.jpg", None),
        ListedImage("b.jpg", None),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"url,labels\na,x\n", "line 1: no column 'uri'; found 'url', 'labels'"),
        (b"uri,lables\na,x\n", "line 1: unknown column 'lables'; did you mean 'labels'"),
        (b"uri,labels,Negative\na,x,y\n", "did you mean 'negatives'"),
        (b"filename,path\na,x\n", "line 1: columns 'filename', 'path' may each be 'uri'; rename the right one"),
        (b"uri,labels,uri\na,x,b\n", "line 1: column 'uri' twice"),
        (b"uri,labels\na,x\nb,y,z\n", "line 3: 3 fields, expected 2: uri, labels"),
        (b"uri,labels\na,x\n,y\n", "line 3: uri is empty"),
        (b"uri,labels\na,['x'\n", r"line 2: labels is not a JSON list .* found \['x'; write cat\|dog"),
        (b"uri,labels\na,[x]\n", r"line 2: labels is not a JSON list .* found \[x\]; write cat\|dog"),
        (b"uri,labels\na,\"['x', 1]\"\n", "line 2: labels must be a list of texts"),
        (b"uri,labels\na,[1]\n", "line 2: labels must be a list of texts"),
        (b'uri,labels\na,"x"y\n', "line 2: not valid CSV"),
        (b'uri,labels\na,"x\nb,y\n', "line 3: not valid CSV"),
        (b"uri,labels\na,x\nb,\xff\n", "line 3: not UTF-8"),
        (b"uri,labels\na,x||y\n", "a: an empty label"),
        (b"uri,labels\n", "no rows"),
        (b"", "no rows"),
    ],
)
def test_csv_errors(tmp_path, read_corpus, content: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(CorpusError, match=message) as caught:
        read_corpus("csv", tmp_path, tmp_path / "a.csv")
    assert "a.csv" in str(caught.value) or message.startswith("a: ")


def write_parquet(path, columns: dict, **options) -> str:
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


TEXTS = pa.list_(pa.string())


def test_parquet(tmp_path, read_corpus) -> None:
    columns = {
        "width": [1, 2, 3, 4],
        "negatives": pa.array([None, [], ["bird"], None], TEXTS),
        "labels": pa.array([["dog", "cat "], ["cat"], None, []], pa.large_list(pa.dictionary(pa.int8(), pa.string()))),
        "uri": pa.array(["a.jpg", "s3://bucket/b.jpg", "c.jpg", "d.jpg"], pa.large_string()),
    }
    annotations = write_parquet(tmp_path / "a.parquet", columns, row_group_size=3)
    rows, vocabulary = read_corpus("parquet", tmp_path, annotations)
    assert rows == [
        ListedImage("a.jpg", ("dog", "cat"), None),
        ListedImage("s3://bucket/b.jpg", ("cat",), ()),
        ListedImage("c.jpg", None, ("bird",)),
        ListedImage("d.jpg", (), None),
    ]
    assert vocabulary.names == ["bird", "cat", "dog"]
    assert label_states(rows, vocabulary).tolist() == [[-1, 1, 1], [0, 1, 0], [-1, 0, 0], [-1, -1, -1]]


def test_parquet_rows_are_listed_while_the_file_is_read(tmp_path) -> None:
    columns = {"uri": [f"{n}.jpg" for n in range(20_000)], "labels": pa.array([["cat"]] * 20_000, TEXTS)}
    annotations = write_parquet(tmp_path / "a.parquet", columns, row_group_size=10_000)
    before = pa.total_allocated_bytes()
    rows = iter(get_corpus("parquet")(str(tmp_path), annotations).images)
    assert next(rows).uri == "0.jpg"
    assert pa.total_allocated_bytes() - before < 5_000_000
    assert sum(1 for _ in rows) == 19_999


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"url": ["a"], "labels": [["x"]]}, "no column 'uri'; found 'url', 'labels'"),
        ({"uri": ["a"], "lables": [["x"]]}, "unknown column 'lables'; did you mean 'labels'"),
        ({"uri": ["a"], "labels": [1.5]}, "column labels has type double, expected lists of texts"),
        ({"uri": ["a"], "labels": [[1]]}, "column labels has type list<.*int64>, expected lists of texts"),
        ({"uri": [1], "labels": [["x"]]}, "column uri has type int64, expected text"),
        ({"uri": ["a", None], "labels": [["x"], ["x"]]}, "row 1: uri is empty"),
        ({"uri": ["a"], "labels": [["x", None]]}, "row 0: a label is null"),
        ({"uri": pa.array([], pa.string())}, "no rows"),
    ],
)
def test_parquet_errors(tmp_path, read_corpus, columns: dict, message: str) -> None:
    annotations = write_parquet(tmp_path / "a.parquet", columns)
    with pytest.raises(CorpusError, match=message) as caught:
        read_corpus("parquet", tmp_path, annotations)
    assert "a.parquet" in str(caught.value)


def test_a_file_that_is_not_parquet(tmp_path, read_corpus) -> None:
    write_parquet(tmp_path / "a.parquet", {"uri": ["a"]})
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(b"uri,labels\n")
    (tmp_path / "c.parquet").write_bytes(whole[:-30] + b"\xff" * 22 + whole[-8:])
    for name in ("b.parquet", "c.parquet"):
        with pytest.raises(CorpusError, match=f"{name}: cannot be read as Parquet"):
            read_corpus("parquet", tmp_path, tmp_path / name)
