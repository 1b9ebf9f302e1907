"""Code that all commands share.

A command prints its configuration first. It turns an error that is the input's fault into one line instead of a
traceback. Modules of this package import nothing heavy at the top, so that `--help` and errors in flags are printed
before torch, Ray or open_clip are imported.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, get_args, get_origin

import tyro

from sigrl_core import plugins
from sigrl_core.cli.terminal import ends_with_its_reader, print_git_notice
from sigrl_core.config import Resources, RunConfig
from sigrl_core.config.checks import require_backbone, require_registered
from sigrl_core.config.deprecated import rename_flags
from sigrl_core.config.json import from_json
from sigrl_core.config.presets import PRESETS, get_preset
from sigrl_core.errors import ConfigError, PreemptedError, causes_of, explain

INTERRUPTED = 130
PREEMPTED = 143  # the status of a process that SIGTERM ends

_CommandT = TypeVar("_CommandT")


@dataclass(frozen=True, kw_only=True)
class CpuResources(Resources):
    """Resources of a command that uses no GPU."""

    gpus_per_worker: tyro.conf.Suppress[float] = 0.0


@dataclass(frozen=True, kw_only=True)
class FixedResources(Resources):
    """Resources of a command whose number of workers does not change while it runs."""

    min_workers: tyro.conf.Suppress[int | None] = None


def plain(resources: Resources) -> Resources:
    """Returns resources as the base class, which workers can unpickle without this package."""
    return Resources(**dataclasses.asdict(resources))


PLUGIN_HELP = (
    "--plugin MODULE imports a module that registers losses, label graphs, corpora, backbones or metrics; it may be "
    "given several times."
)


def run_command(name: str, body: Callable[[list[str]], object], arguments: Sequence[str] | None) -> NoReturn:
    """Runs a command on its arguments and ends the process, see `run`.

    Args:
        name: name of the command in `config.deprecated`.
        body: takes the arguments without `--plugin` and with the present names of flags.
        arguments: None takes the arguments of the process.
    """

    def command() -> None:
        modules, flags = split_plugins(sys.argv[1:] if arguments is None else arguments)
        plugins.load(modules)  # first, because values of other flags may be names that plug-ins register
        flags, messages = rename_flags(name, flags)
        for message in messages:
            print(message, file=sys.stderr)
        body(flags)

    run(command)


def split_plugins(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits arguments into the values of `--plugin` and the rest.

    Raises:
        ConfigError: `--plugin` without a value.
    """
    modules, rest, remaining = list[str](), list[str](), iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        if name != "--plugin":
            rest.append(argument)
            continue
        value = value if equals else next(remaining, "")
        if not value or value.startswith("-"):
            raise ConfigError("--plugin needs the name of a module, such as --plugin my_losses")
        modules.append(value)
    return modules, rest


def _is_instance(annotation: Any, value: Any) -> bool:
    """Replaces tyro's check of defaults: needs no typeguard for `X | None`, `tuple[X, ...]` and `dict[X, Y]`.

    tyro imports typeguard for these, which takes longer than everything else that `--help` does. Elements of tuples and
    dictionaries are not checked.
    """
    origin = get_origin(annotation)
    if origin is types.UnionType:
        return any(_is_instance(each, value) for each in get_args(annotation))
    if origin in (tuple, dict):
        return isinstance(value, origin)
    return _tyro_is_instance(annotation, value)


_tyro_is_instance = tyro._resolver.is_instance
tyro._resolver.is_instance = _is_instance  # pyright: ignore[reportAttributeAccessIssue]


def parse(target: Callable[..., Any], flags: Sequence[str], usage: str | None, prog: str | None, **options: Any) -> Any:
    """Parses flags into a dataclass, or calls a function with them.

    Args:
        target: dataclass or function.
        usage: description of the command.
        prog: name of the program in the help; None takes that of the process.
        options: of `tyro.cli`.
    """
    description = f"{(usage or '').strip()}\n\n{PLUGIN_HELP}"
    return tyro.cli(target, args=flags, prog=prog, description=description, **options)


def run(command: Callable[[], object]) -> NoReturn:
    """Runs a command and ends the process: 0, 1 with one `error:` line, 130 when interrupted, 143 when preempted.

    A SigrlError that Ray wrapped in another exception is handled like an unwrapped one; other errors keep their
    traceback.
    """
    try:
        with ends_with_its_reader():
            command()
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        if any(isinstance(cause, PreemptedError) for cause in causes_of(error)):
            print(message, file=sys.stderr)
            sys.exit(PREEMPTED)
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def parse_with_preset(
    command: type[_CommandT], arguments: Sequence[str], usage: str | None, prog: str | None
) -> _CommandT:
    """Parses `PRESET --config FILE --more flags` into the dataclass of a command whose field `run` the preset fills.

    Raises:
        ConfigError: as `preset_and_flags`, or an unknown loss or backbone. Both are checked here, before anything
            heavy is imported.
    """
    preset, flags = preset_and_flags(arguments, usage or "")
    default: Any = command
    parsed: Any = parse(command, flags, usage, prog, default=default(data=tyro.MISSING, out=tyro.MISSING, run=preset))
    require_registered(plugins.LOSSES, parsed.run.loss.kind)
    require_backbone(parsed.run.backbone.name, parsed.run.backbone.pretrained)
    return parsed


def preset_and_flags(arguments: Sequence[str], usage: str) -> tuple[RunConfig, list[str]]:
    """Splits `PRESET --config FILE --more flags` into the run that the flags change, and the flags.

    Raises:
        ConfigError: an unknown preset, or a file that is not a configuration.
    """
    flags = list(arguments)
    if not flags or flags[0] in ("-h", "--help"):
        print(f"{usage}\n{PLUGIN_HELP}\npresets: {', '.join(PRESETS)}; PRESET --help lists every flag")
        sys.exit(0 if flags else 2)
    if flags[0].startswith("-"):
        raise ConfigError(f"the preset comes first, found {flags[0]!r}; known are {', '.join(PRESETS)}")
    preset = get_preset(flags.pop(0))
    for position, flag in enumerate(flags):
        name, _, value = flag.partition("=")
        if name == "--config":
            if not value and position + 1 == len(flags):
                raise ConfigError("--config needs a file: the config.json of an earlier run")
            return _read_run(value or flags[position + 1]), flags
    return preset, flags


def _read_run(path: str) -> RunConfig:
    try:
        with open(path, encoding="utf-8") as file:
            return from_json(RunConfig, file.read(), path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}); --config takes the config.json of an earlier run"
        ) from error


def print_configuration(*configs: Any) -> None:
    """Prints dataclasses as lines `dotted.name = value`, with the names of the command line, and a note about `out`."""
    for config in configs:
        for name, value in _flat(dataclasses.asdict(config)):
            print(f"{_SECTIONS_WITHOUT_NAME.sub('', name)} = {value}", flush=True)
    for config in configs:
        if (out := getattr(config, "out", None)) is not None:
            print_git_notice(out)


_SECTIONS_WITHOUT_NAME = re.compile(r"^(run|search|resources)\.")  # their flags have no prefix


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
