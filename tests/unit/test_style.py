"""The language of CONTRIBUTING.md, as far as a program can check it: names of code, and the length of modules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.unit

MODULES = sorted([*(REPOSITORY / "sigrl_core").rglob("*.py"), *(REPOSITORY / "pipelines").glob("*.py")])
MAX_LINES = 400
NO_PERSON = {"told", "said", "hears", "heard", "tells", "telling", "asks", "asked", "noted", "everyone"}
"""Code is not a person: no word of a name is one of these."""
NO_THING = {"found", "most", "least", "mine", "others"}
"""Words that say nothing about the thing: no name is one of these."""


def name_of(module: Path) -> str:
    return str(module.relative_to(REPOSITORY))


def names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """What a module names: variables, functions, arguments, attributes, classes; and the lines."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, node.lineno
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.arg(arg=name):
                yield name, node.lineno
            case ast.ImportFrom(names=aliases) | ast.Import(names=aliases):
                for alias in aliases:
                    if alias.asname:
                        yield alias.asname, node.lineno
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name, node.lineno
            case _:
                pass


def words(name: str) -> set[str]:
    """`_told_of` and `ToldOf` are both {told, of}."""
    snake = (
        "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
        if name != name.upper()
        else name
    )
    return set(snake.lower().split("_")) - {""}


def test_names() -> None:
    forbidden = [
        f"{name_of(module)}:{line}: {name}"
        for module in MODULES
        for name, line in names(ast.parse(module.read_text()))
        if words(name) & NO_PERSON or name.strip("_") in NO_THING
    ]
    assert not forbidden, "\n".join(forbidden)


def test_length() -> None:
    lines = {name_of(module): len(module.read_text().splitlines()) for module in MODULES}
    too_long = {name: count for name, count in lines.items() if count > MAX_LINES}
    assert not too_long, f"{too_long}: expected at most {MAX_LINES} lines; split a longer module by its ideas"
