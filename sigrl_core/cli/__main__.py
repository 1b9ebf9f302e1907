"""The console command `sigrl`. Its verbs are the scripts of pipelines/, with the same flags."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from sigrl_core import __version__
from sigrl_core.cli.terminal import ends_with_its_reader

VERBS = {
    "quickstart": "runs the whole chain on the built-in corpus",
    "preprocess": "turns a corpus of images into shards",
    "cache-features": "computes the features of a frozen backbone for shards",
    "train": "trains a model on shards",
    "tune": "searches for the best configuration of a training",
    "evaluate": "measures a checkpoint on shards and writes a report",
    "calibrate": "turns scores into probabilities and thresholds",
    "tag": "tags the images of a folder or bucket",
    "serve": "serves tags over HTTP",
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one of the commands and ends the process; status 2 for an unknown one."""
    with ends_with_its_reader():
        _run(arguments)
    raise AssertionError("a command ends the process")


def _run(arguments: Sequence[str] | None) -> None:
    words = list(sys.argv[1:] if arguments is None else arguments)
    verb = words[0].replace("_", "-") if words else "--help"
    if verb in ("-h", "--help"):
        width = max(map(len, VERBS))
        print("usage: sigrl VERB [OPTIONS]\n")
        print("\n".join(f"  {name:{width}}  {line}" for name, line in VERBS.items()))
        print("\nsigrl VERB --help lists the flags of a verb; sigrl --version prints the version.")
        sys.exit(0 if words else 2)
    if verb == "--version":
        print(f"sigrl {__version__}")
        sys.exit(0)
    if verb not in VERBS:
        print(f"sigrl: {words[0]!r} is not a command; the commands are {', '.join(VERBS)}", file=sys.stderr)
        sys.exit(2)
    command = importlib.import_module(f"sigrl_core.cli.{verb.replace('-', '_')}")
    command.main(words[1:], prog=f"sigrl {verb}")


if __name__ == "__main__":
    main()
