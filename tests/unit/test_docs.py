"""The blocks of Python in docs/ run as they stand; links between pages lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sigrl_core import corpora, losses
from sigrl_core.model import backbone, label_graph
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.unit

PAGES = sorted([REPOSITORY / "README.md", REPOSITORY / "cluster" / "README.md", *(REPOSITORY / "docs").glob("*.md")])


TABLES: list[dict] = [losses.LOSSES, label_graph.GRAPHS, corpora.CORPORA, backbone.BACKBONES]


def test_extending() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (REPOSITORY / "docs" / "extending.md").read_text(), re.M | re.S)
    assert len(blocks) == len(TABLES)
    before, told = [set(table) for table in TABLES], dict[str, object]()
    try:
        for block in blocks:
            exec(compile(block, "extending.md", "exec"), told)
        assert [len(set(table) - names) for table, names in zip(TABLES, before, strict=True)] == [1, 1, 1, 1]
    finally:
        for table, names in zip(TABLES, before, strict=True):
            for name in set(table) - names:
                del table[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page}: {target}"
