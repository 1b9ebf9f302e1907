"""Parts of a file in a store that fails at every other call: the same bytes as of a file on disk."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigrl_core.errors import StorageError
from sigrl_core.io.store_file import StoreFile

pytestmark = pytest.mark.unit

LOST = OSError("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 7")
DATA = bytes(range(256)) * 5


class FailingStore:
    """A file system of one file; every other call fails with `error`."""

    def __init__(self, data: bytes, error: OSError = LOST) -> None:
        self._file, self._error, self.calls = pa.BufferReader(data), error, 0

    def open_input_file(self, path: str) -> "FailingStore":
        self._fail()
        return self

    def read_at(self, nbytes: int, offset: int) -> bytes:
        self._fail()
        return self._file.read_at(nbytes, offset)

    def size(self) -> int:
        return self._file.size()

    def close(self) -> None:
        self._file.close()

    def _fail(self) -> None:
        self.calls += 1
        if self.calls % 2:
            raise self._error


@pytest.fixture(autouse=True)
def no_pause(monkeypatch) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)


def open_file(data: bytes) -> StoreFile:
    return StoreFile("s3://bucket/key", FailingStore(data), "bucket/key")  # pyright: ignore[reportArgumentType]


def test_parquet_and_lines_are_read_through_failures() -> None:
    table, sink = pa.table({"a": range(1000), "b": ["x"] * 1000}), pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=100)
    with open_file(sink.getvalue().to_pybytes()) as file:
        assert pq.ParquetFile(file).read(["a"]).equals(table.select(["a"]))
    with open_file(b"one\ntwo\n") as file:
        assert list(io.BufferedReader(file, 4)) == [b"one\n", b"two\n"]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("read"), st.integers(-1, 2000)),
            st.tuples(st.just("set"), st.integers(0, 2000)),
            st.tuples(st.just("end"), st.integers(-1280, 100)),
        ),
        max_size=8,
    )
)
def test_reads_and_seeks_are_those_of_a_file_in_memory(calls: list[tuple[str, int]]) -> None:
    expected = io.BytesIO(DATA)
    with open_file(DATA) as file:
        for call, number in calls:
            if call == "read":
                assert file.read(number) == expected.read(number)
            else:
                whence = io.SEEK_END if call == "end" else io.SEEK_SET
                assert file.seek(number, whence) == expected.seek(number, whence)
            assert file.tell() == expected.tell()


def test_a_permanent_error_is_raised_at_once() -> None:
    store = FailingStore(b"", OSError("AWS Error ACCESS_DENIED during HeadObject operation"))
    with pytest.raises(StorageError, match="s3://bucket/key: cannot be read: permission denied"):
        StoreFile("s3://bucket/key", store, "bucket/key")  # pyright: ignore[reportArgumentType]
    assert store.calls == 1
