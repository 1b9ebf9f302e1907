"""The site of `make docs` builds without warnings and has a page for every guide and every module."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.processes import recipe_of

pytestmark = pytest.mark.e2e


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
        if path.stem != "__main__"  # apidoc leaves it out
    }
    assert {f"{name}.html" for name in modules} <= {path.name for path in (built / "api").iterdir()}
