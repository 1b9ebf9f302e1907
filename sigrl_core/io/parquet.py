"""Writes tables as reproducible Parquet bytes, and opens Parquet files in memory."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def to_parquet(table: pa.Table) -> bytes:
    """Encodes a table as a Parquet file: the same bytes for the same table; images are not compressed again."""
    sink = pa.BufferOutputStream()
    compression: Any = {name: "none" if name in ("image", "tokens") else "zstd" for name in table.column_names}
    pq.write_table(
        table,
        sink,
        compression=compression,
        use_dictionary=False,
        row_group_size=max(1, table.num_rows),
        write_statistics=False,
    )
    return sink.getvalue().to_pybytes()


def open_parquet_bytes(data: bytes) -> pq.ParquetFile:
    """Opens a Parquet file in memory. Read its tables with `use_threads=False`.

    Arrow's threads would release `data`, a Python object, some time later; a process that exits before that ends with
    "terminate called without an active exception" (apache/arrow issue 34314).
    """
    return pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)
