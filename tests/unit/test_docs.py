"""The statements of the pages hold: Python blocks run; links, names, files, messages and figures exist as written.

Flags are in test_commands_in_docs.py; the commands themselves run in tests/e2e/test_guides.py.
"""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from sigrl_core import plugins
from sigrl_core.config import deprecated, presets
from sigrl_core.config.presets import PRESETS
from sigrl_core.config.stages import AUTO_CORPUS
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.unit

PAGES = sorted([*REPOSITORY.glob("*.md"), REPOSITORY / "cluster" / "README.md", *(REPOSITORY / "docs").glob("*.md")])
COMMANDS = sorted(path.stem for path in (REPOSITORY / "pipelines").glob("*.py"))
TRUE_PAGES = [page for page in PAGES if page.stem not in ("LOG", "RESULTS", "CHANGELOG")]
"""Pages about the present code; the other pages are records with the names of their time."""


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


TABLES = (plugins.LOSSES, plugins.GRAPHS, plugins.CORPORA, plugins.BACKBONES, plugins.METRICS, plugins.ENDPOINTS)


def test_extending() -> None:
    """Each block registers one function; there is one for every table."""
    blocks = re.findall(r"^```python\n(.*?)^```", (REPOSITORY / "docs" / "extending.md").read_text(), re.M | re.S)
    before, namespace = [set(table) for table in TABLES], dict[str, object]()
    try:
        for block in blocks:
            exec(compile(block, "extending.md", "exec"), namespace)
        new = [len(set(table) - names) for table, names in zip(TABLES, before, strict=True)]
        assert new == [1] * len(TABLES)
        assert len(blocks) == len(TABLES)
    finally:
        for table, names in zip(TABLES, before, strict=True):
            for name in set(table) - names:
                del table[name]


# ---- links ----


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and Sphinx write them."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            path, _, anchor = target.partition("#")
            linked = page.parent / path if path else page
            assert linked.exists(), f"{page}: {target}"
            assert not anchor or anchor in anchors(linked), f"{page}: {target}; known are {sorted(anchors(linked))}"


# ---- names ----


def text_of(page: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.M | re.S)


def inline_code(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text_of(page))


@functools.cache
def source() -> str:
    """The text of all code and configuration, in which the names of the pages must occur."""
    folders = [REPOSITORY / name for name in ("sigrl_core", "pipelines", "cluster")]
    kinds = {".py", ".yaml", ".html", ".js", ".j2"}
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix in kinds]
    files += [REPOSITORY / name for name in ("pyproject.toml", "Makefile", "constraints.txt")]
    files += sorted((REPOSITORY / "tests" / "bench").glob("*.py"))
    return "\n".join(path.read_text() for path in files)


@functools.cache
def words() -> set[str]:
    return set(re.findall(r"\w+", source()))


OTHERS_NAMES = {
    *("AWS_", "RAY_AUTH_TOKEN", "RAY_ADDRESS"),  # of the environment
    *("RayCluster", "RayJob", "RayService"),  # of KubeRay
    *("histogram_quantile", "ray_sigrl_request_seconds_bucket"),  # of Prometheus
    *("CUB_200_2011", "instances_train2014", "laion2b_s34b_b79k", "num_"),  # of corpora, of open_clip, of style
}


@pytest.mark.parametrize("page", TRUE_PAGES, ids=name_of)
def test_names(page: Path) -> None:
    """Every snake_case, CamelCase or dotted name in code font occurs in the code."""
    for code in inline_code(page):
        for name in re.findall(r"(?<![\w/.-])[A-Za-z_][\w.]*\b", code):
            parts = [part for part in name.split(".") if "_" in part or re.fullmatch(r"[A-Z][a-z]+[A-Z]\w*", part)]
            for part in parts:
                known = part in words() or part.removeprefix("ray_").removesuffix("_total") in words()
                assert known or part in OTHERS_NAMES, f"{page}: `{code}`: {part} is in no file"


@pytest.mark.parametrize("page", TRUE_PAGES, ids=name_of)
def test_files(page: Path) -> None:
    """Every path in code font exists, or the code names it as a file that a command writes."""
    for code in inline_code(page):
        if not re.fullmatch(r"[\w./*-]+", code) or code.startswith(("runs/", "/", "s3:", "--")):
            continue
        if "/" in code:
            places = [REPOSITORY, REPOSITORY / "sigrl_core", page.parent, REPOSITORY / "docs"]
            there = any((place / code).exists() or list(place.glob(code.rstrip("/"))) for place in places)
            assert there or code in source() or code in EXAMPLES, f"{page}: {code} is not there"
        elif re.search(r"\.(html|json|jsonl|parquet|py|md|yaml|txt|csv|tar)$", code):
            there = [*REPOSITORY.glob(code), *REPOSITORY.glob(f"*/{code}")]
            assert there or code in source() or code in EXAMPLES, f"{page}: {code} is written by nothing"


EXAMPLES = {  # files of users and of published corpora, and those that `make` writes
    *("photos", "labels.txt", "labels.jsonl", "FILE.npy", "kuberay/jobs", "photos/", "docs/_build/index.html"),
    *("classes.txt", "VOC2012/JPEGImages", "VOC2012/ImageSets/Main/trainval.txt", "CUB_200_2011/images"),
    *("ImageList/TrainImagelist.txt", "instances_train2014.json", "train-annotations-human-imagelabels.csv"),
}


def column(page: Path, heading: str) -> set[str]:
    """Names in the first column of the table whose head begins so."""
    _, head, rest = page.read_text().partition(f"| {heading} |")
    assert head, f"{page}: no table with {heading!r}"
    rows = rest.partition("\n\n")[0].splitlines()[2:]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])}


def test_tables_of_names_are_whole() -> None:
    docs = REPOSITORY / "docs"
    assert column(docs / "corpora.md", "name") == set(plugins.CORPORA)
    assert column(docs / "own_labels.md", "kind") == {*plugins.GRAPHS, "none"}
    presets_in_table = set(re.findall(r"`(\w+)`", (docs / "corpora.md").read_text().partition("## Benchmarks")[2]))
    assert set(PRESETS) - presets_in_table == {"quickstart", "quickstart_mkt"}


@pytest.mark.parametrize("page", TRUE_PAGES, ids=name_of)
def test_values_of_flags_that_name_something(page: Path) -> None:
    """Presets, losses, label graphs and corpora, wherever a command names one."""
    text = "\n".join([*inline_code(page), *re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)])
    for name in re.findall(r"\b(?:train|tune)\.py ([a-z]\w*)", text):
        assert name in PRESETS, f"{page}: preset {name}"
    own = set(re.findall(r"\w+", "".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))))
    tables = {
        "loss.kind": plugins.LOSSES,
        "graph.kind": {*plugins.GRAPHS, "none"},
        "corpus": {*plugins.CORPORA, AUTO_CORPUS},
    }
    for flag, table in tables.items():
        for names in re.findall(rf"--(?:space\.)?{flag} ((?:[a-z]\w* ?)+)", text):
            assert set(names.split()) <= {*table, *own}, f"{page}: --{flag} {names}"


def test_the_layers_of_architecture_are_those_that_lint_enforces() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    _, _, drawn = page.partition("pipelines -> ")
    layers = [sorted(re.findall(r"\w+", layer)) for layer in drawn.partition("\n\n")[0].split("->")]
    contract = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    assert layers == [sorted(layer.split(" | ")) for layer in contract["layers"]]
    packages = {path.stem for path in (REPOSITORY / "sigrl_core").iterdir() if path.suffix == ".py" or path.is_dir()}
    listed = column(REPOSITORY / "docs" / "architecture.md", "package")
    assert {name.removesuffix(".py").rstrip("/") for name in listed} == packages - {"__pycache__"}


def test_messages() -> None:
    """The messages that operating.md quotes are in the code, except for placeholders."""
    texts = " ".join(node.value for node in strings_of_the_code())
    table = (REPOSITORY / "docs" / "operating.md").read_text().partition("| message |")[2].partition("\n\n")[0]
    quoted = [code for row in table.splitlines() for code in re.findall(r"`([^`-][^`]*)`", row.split(" | ")[0])]
    assert len(quoted) >= 4
    for message in quoted:
        for fragment in re.split(r"\s*(?:\.\.\.|\b[XYN]\b)\s*", message):
            assert fragment in texts, f"operating.md: {message!r}: the code has no {fragment!r}"


def strings_of_the_code() -> Iterator[ast.Constant]:
    for path in (REPOSITORY / "sigrl_core").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node


# ---- figures ----


@pytest.mark.parametrize("page", [*TRUE_PAGES, Path(presets.__file__)], ids=name_of)
def test_figures_are_those_of_the_results(page: Path) -> None:
    results = (REPOSITORY / "docs" / "RESULTS.md").read_text()
    text = page.read_text()
    for figure in re.findall(r"\d+\.\d ± \d+\.\d", text):
        assert figure in results, f"{page}: {figure}"
    for points in re.findall(r"(\d+\.\d) points", text):
        assert f"-{points} ± " in results, f"{page}: {points} points"


def test_times_of_the_quickstart_are_those_of_the_log() -> None:
    log = (REPOSITORY / "docs" / "LOG.md").read_text().partition("A new user, a fresh clone, README alone")[2]
    times = re.findall(r"(\d+) s\b", (REPOSITORY / "docs" / "quickstart.md").read_text().partition("## What")[0])
    assert len(times) >= 5
    for seconds in times:
        assert f"{seconds} s" in log or seconds == "45", seconds  # 45: everything else, added up


def test_costs_are_those_of_the_table() -> None:
    rows = [line.split(" | ") for line in (REPOSITORY / "docs" / "SCALING.md").read_text().splitlines()]
    of_one_gpu = {row[0].removeprefix("| "): row for row in rows if len(row) > 8 and row[1] == "1"}
    text = " ".join((REPOSITORY / "cluster" / "README.md").read_text().split())
    estimates = re.findall(r"(\d+) minutes for (?:five epochs of )?(\w+) \((\d\.\d\d) dollars\)", text)
    stages = {"preprocessing": "preprocess", "training": "train", "tagging": "tag"}
    assert [word for _, word, _ in estimates] == list(stages)
    for minutes, word, dollars in estimates:
        row = of_one_gpu[stages[word]]
        assert (row[5], row[8].removesuffix(" |")) == (f"{minutes} min", dollars)


# ---- the changelog ----


def test_the_changelog_lists_every_old_name() -> None:
    text = (REPOSITORY / "CHANGELOG.md").read_text()
    for old, new in deprecated.RENAMED_PRESETS.items():
        assert f"| preset `{old}` | preset `{new}` |" in text, old
    for command in COMMANDS:
        for old, new in deprecated.flags_of(command).items():
            if not old.startswith("--space.") and not old.rpartition(".")[2].removeprefix("--").startswith("no-"):
                row = next((line for line in text.splitlines() if f" | `{old}` | `{new}` |" in line), "")
                assert command in row.removeprefix("| ").partition(" |")[0].split(", "), f"{command} {old}"
