"""What commands print besides their results: nothing to a reader that has ended, and where output goes inside Git."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BROKEN_PIPE = 141
"""The status of a process that SIGPIPE ends."""


@contextmanager
def ends_with_its_reader() -> Iterator[None]:
    """Ends the process without a traceback when the program that reads stdout, such as `head`, has ended."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again at exit
        sys.exit(BROKEN_PIPE)


def print_git_notice(out: str) -> None:
    """Prints a line on stderr if a folder to write is in a Git work tree that does not ignore it."""
    path = Path(out).expanduser().absolute()
    if "://" in out or not any((parent / ".git").exists() for parent in path.parents):
        return
    existing = next(parent for parent in path.parents if parent.is_dir())
    try:
        done = subprocess.run(
            ["git", "-C", existing, "check-ignore", "-q", path], capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):  # no Git here
        return
    if done.returncode == 1:  # 128: not a work tree, or one of another user
        print(
            f"note: {out} is in a Git work tree that does not ignore it; add it to .gitignore, or choose another --out",
            file=sys.stderr,
        )
