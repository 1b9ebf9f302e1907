"""The site builds; blocks of Python run as they stand; links between pages lead somewhere in the repository too."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sigrl_core import corpora, losses
from sigrl_core.model import backbone, label_graph
from tests.conftest import REPOSITORY
from tests.processes import recipe_of

pytestmark = pytest.mark.unit

PAGES = sorted([REPOSITORY / "README.md", REPOSITORY / "cluster" / "README.md", *(REPOSITORY / "docs").glob("*.md")])


TABLES: list[dict] = [losses.LOSSES, label_graph.GRAPHS, corpora.CORPORA, backbone.BACKBONES]


@pytest.mark.timeout(900)
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    """By the recipe of `make docs`: pages, the reference of every module, links between pages and inside them."""
    docs = tmp_path / "docs"  # apidoc writes beside the pages
    shutil.copytree(REPOSITORY / "docs", docs, ignore=shutil.ignore_patterns("_build", "api"))
    shutil.copytree(REPOSITORY / "cluster", tmp_path / "cluster")
    shutil.copy(REPOSITORY / "README.md", tmp_path)
    (tmp_path / "sigrl_core").symlink_to(REPOSITORY / "sigrl_core")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    done = subprocess.run(["bash", "-c", recipe_of("docs")], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    built = docs / "_build"
    assert {path.stem for path in docs.glob("*.md")} <= {path.stem for path in built.glob("*.html")}
    modules = {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        for path in (REPOSITORY / "sigrl_core").rglob("*.py")
    }
    assert {f"{name}.html" for name in modules} <= {path.name for path in (built / "api").iterdir()}


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
