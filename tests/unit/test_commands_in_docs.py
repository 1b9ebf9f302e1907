"""The commands' own parsers take every command and every flag of the pages, the manifests and the docstrings.

Nothing is run here: tests/e2e/test_guides.py runs the blocks of the guides.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import tyro

from sigrl_core.cli import common
from sigrl_core.config import RunConfig
from tests.conftest import REPOSITORY
from tests.unit.test_docs import COMMANDS, TRUE_PAGES, inline_code, name_of

pytestmark = pytest.mark.unit

NEEDED = {
    "preprocess": "--corpus folder --images i --out o",
    "cache_features": "--data d --out o",
    "train": "default --data d --out o",
    "tune": "default --data d --out o",
    "evaluate": "--checkpoint c --data d --out o",
    "calibrate": "--checkpoint c --data d",
    "tag": "--checkpoint c --images i --out o",
    "serve": "--checkpoint c",
    "quickstart": "",
}
"""The required arguments of each command."""
OTHER_PROGRAMS = ("ray", "serve deploy", "kubectl", "docker", "curl", "pip", "make", "sphinx-build", "pre-commit")


class ParsedError(Exception):
    """Raised after the arguments of a command were parsed, in the place of its work."""


@pytest.fixture(autouse=True)
def parsers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands parse their arguments and do nothing else."""
    cli = tyro.cli

    def parse(command, **options):
        stub = command if isinstance(command, type) else functools.wraps(command)(lambda *values, **named: None)
        cli(stub, **options)
        raise ParsedError

    monkeypatch.setattr(tyro, "cli", parse)
    monkeypatch.setattr(common, "_read_run", lambda path: RunConfig())  # of --config, whose file a page's blocks write
    monkeypatch.setenv("COLUMNS", "300")


def parses(name: str, arguments: Sequence[str]) -> bool:
    """Returns whether a command accepts these arguments."""
    module = importlib.import_module(f"sigrl_core.cli.{name}")
    try:
        module.main(list(arguments))
    except ParsedError:
        return True
    except SystemExit as end:
        return end.code == 0
    raise AssertionError(name)


@functools.cache
def flags_of(name: str) -> frozenset[str]:
    """The flags that a command's help lists."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert parses(name, ["default", "--help"] if name in ("train", "tune") else ["--help"])
    extra = {"--new-key", "--requests-per-minute"} if name == "serve" else set()  # of its second form
    return frozenset(re.findall(r"(?<![\w-])--[a-z][\w.-]*", text.getvalue())) | extra


def commands_in(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yields name and arguments of each command of this project in a text."""
    for line in re.sub(r" *\\+\n\s*", " ", text).splitlines():
        for name, rest in re.findall(r"(?:python pipelines/|^ *sigrl )([\w-]+)(?:\.py)? ([^`#]*)", line):
            if not re.match(r"[A-Z]+\b", rest):  # NAME stands for something else
                yield name.replace("-", "_"), shlex.split(rest.partition(" && ")[0])


DOCSTRINGS = [*(REPOSITORY / "sigrl_core" / "cli").glob("*.py"), REPOSITORY / "sigrl_core" / "config" / "presets.py"]
MANIFESTS = sorted((REPOSITORY / "cluster" / "kuberay" / "jobs").glob("*.yaml"))


def commands_of(path: Path) -> list[tuple[str, list[str]]]:
    text = path.read_text()
    if path.suffix == ".md":
        text = "\n".join(re.findall(r"^ *```bash\n(.*?)^ *```", text, re.M | re.S))
    elif path.suffix == ".yaml":
        text = re.sub(r"\n {4}", " ", text)  # a folded text
    return list(commands_in(text))


@pytest.mark.parametrize("path", [*TRUE_PAGES, *MANIFESTS, *DOCSTRINGS], ids=name_of)
def test_commands(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = commands_of(path)
    assert commands or path.suffix != ".yaml"
    for name, arguments in commands:
        assert name in COMMANDS, f"{path}: {name}"
        assert parses(name, arguments), f"{path}: {name} {shlex.join(arguments)}\n{capsys.readouterr().err}"
        assert "deprecated" not in capsys.readouterr().err, f"{path}: {name} {shlex.join(arguments)}"


def flags_in(code: str) -> list[str]:
    return re.findall(r"(?<![\w-])--[a-z][\w.-]*", code)


def takes(name: str, flag: str) -> bool:
    """`--loss.` stands for all flags that begin so."""
    return flag == "--help" or any(
        known == flag or (flag.endswith(".") and known.startswith(flag)) for known in flags_of(name)
    )


@pytest.mark.parametrize("page", TRUE_PAGES, ids=name_of)
def test_flags_in_the_text(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The named command, or else some command, has each mentioned flag, and accepts its value."""
    for code in inline_code(page):
        flags = flags_in(code)
        if not flags or code.startswith(OTHER_PROGRAMS):
            continue
        named = re.match(r"(?:sigrl |python pipelines/)?(\w+)(?:\.py)?\b(?= )", code)
        commands = [named[1]] if named and named[1] in COMMANDS else COMMANDS
        taking = [name for name in commands if all(takes(name, flag) for flag in flags)]
        assert taking, f"{page}: `{code}`: no command has {flags}"
        words = shlex.split(code)[1 if named else 0 :]
        placeholders = any(word.isupper() for word in words)
        if words and words[0].startswith("--") and len(words) > len(flags) and not placeholders:
            assert any(parses(name, [*shlex.split(NEEDED[name]), *words]) for name in taking), (
                f"{page}: `{code}`: no command takes these values\n{capsys.readouterr().err}"
            )


def test_an_unknown_flag_is_detected(capsys: pytest.CaptureFixture[str]) -> None:
    assert not parses("tag", shlex.split(NEEDED["tag"] + " --top-kay 3"))
    assert not parses("train", shlex.split("default --data d --out o --loss.distillation much"))
    assert "--top-k" in flags_of("tag")
    assert "--top-kay" not in flags_of("tag")
