"""What all commands share: the configuration first, one line instead of a traceback for what is the input's fault."""

from __future__ import annotations

import dataclasses
import errno
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from sigrl_core.config import RunConfig
from sigrl_core.config_json import from_json
from sigrl_core.errors import ConfigError, PreemptedError, SigrlError
from sigrl_core.presets import PRESETS, get_preset

INTERRUPTED = 130
PREEMPTED = 143  # as of a process that SIGTERM ends


def run(command: Callable[[], object]) -> NoReturn:
    """Runs a command and ends the process: 0, 1 with one `error:` line, 130 when interrupted, 143 when preempted.

    A SigrlError raised in another process and wrapped on its way here counts as itself; others keep their traceback.
    """
    try:
        command()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        if any(isinstance(cause, PreemptedError) for cause in _causes(error)):
            print(message, file=sys.stderr)
            sys.exit(PREEMPTED)
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def explain(error: BaseException) -> str | None:
    """The one line for an error that is the input's or the machine's fault; None for a bug."""
    for cause in _causes(error):
        if isinstance(cause, SigrlError):
            return " ".join(str(cause).split())
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f"{cause.filename}: " if cause.filename else ""
            return f"{where}disk full; free some space and run the same command again"
    return None


def preset_and_flags(arguments: Sequence[str], usage: str) -> tuple[RunConfig, list[str]]:
    """Splits `PRESET --config FILE --other flags` into the run that flags start from, and the flags.

    Raises:
        ConfigError: no such preset, or a file that is no configuration.
    """
    flags = list(arguments)
    if not flags or flags[0] in ("-h", "--help"):
        print(f"{usage}\npresets: {', '.join(PRESETS)}; PRESET --help lists every flag")
        sys.exit(0 if flags else 2)
    if flags[0].startswith("-"):
        raise ConfigError(f"the preset comes first, found {flags[0]!r}; known are {', '.join(PRESETS)}")
    preset = get_preset(flags.pop(0))
    for position, flag in enumerate(flags):
        name, _, value = flag.partition("=")
        if name == "--config":
            if not value and position + 1 == len(flags):
                raise ConfigError("--config wants a file: the config.json of an earlier run")
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


def print_configuration(config: Any) -> None:
    """Prints a configuration as `dotted.name = value` lines, names as on the command line, before anything else."""
    for name, value in _flat(dataclasses.asdict(config)):
        print(f"{_NAMELESS.sub('', name)} = {value}", flush=True)


_NAMELESS = re.compile(r"^(run|search|places)\.")  # parts whose flags go without their name


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all it came from; libraries that carry errors between processes keep theirs in `cause`."""
    waiting, seen = [error], set()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        carried = getattr(current, "cause", None)
        if isinstance(carried, BaseException):  # a carrier has the type of its load, but a traceback as its text
            waiting.insert(0, carried)
        else:
            yield current
        waiting.extend(origin for origin in (current.__cause__, current.__context__) if origin is not None)
