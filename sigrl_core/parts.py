"""Work cut into parts of a listing, so that it can stop and go on. A part depends on the listing, not on who works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sigrl_core import storage
from sigrl_core.errors import StorageError


@dataclass(frozen=True)
class Part:
    """Rows `start` up to, not including, `stop` of a listing."""

    index: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """What files of this part are called; sorts as the parts do (up to 100,000 of them)."""
        return f"{self.index:05d}"

    @property
    def num_rows(self) -> int:
        return self.stop - self.start


def plan_parts(num_rows: int, rows_per_part: int) -> list[Part]:
    """Cuts a listing into parts of `rows_per_part` rows, the last one shorter; a pure function."""
    if num_rows < 0 or rows_per_part < 1:
        raise ValueError(f"{num_rows} rows in parts of {rows_per_part}; expected 0 or more rows in parts of 1 or more")
    starts = range(0, num_rows, rows_per_part)
    return [Part(index, start, min(start + rows_per_part, num_rows)) for index, start in enumerate(starts)]


def differing_key(out: str, plan: dict[str, Any]) -> tuple[str, Any] | None:
    """Notes in `out/plan.json` what a folder is made from, or compares with what is noted there.

    Returns:
        The first key that differs and its noted value, for the caller's error; None where the plan is the same.

    Raises:
        StorageError: the folder holds files of something else.
    """
    where = storage.join(out, "plan.json")
    if not storage.exists(where):
        if storage.exists(out) and storage.list_files(out):
            raise StorageError(f"{out}: holds files of something else (no plan.json); choose another --out")
        storage.write_json(where, plan)
        return None
    noted = storage.read_json(where)
    return next(((key, noted.get(key)) for key in plan if noted.get(key) != plan[key]), None)
