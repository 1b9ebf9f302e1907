"""Time until a command answers, and the CPU time that processes spend on imports.

    python tests/bench/bench_start.py [--out runs/bench_start] [--quick]

- `help_of_tyro`: the slowest `COMMAND --help` divided by `python -c "import tyro"`, medians of interleaved runs.
  `preset_help_of_tyro` is the same of `train.py PRESET --help` and `tune.py PRESET --help`, which list every field.
- `tag_one_s`: seconds of `tag.py` for a folder of one image, Ray included.
- `worker_import_cpu_s`: CPU seconds of imports in the Ray worker that spends most on them, Ray's own imports included,
  by stage; `driver_import_cpu_s` the same of the command's process. Measured in every process by a `sitecustomize`.

The figures under `before` are those of version 0.1.0 (a commit of this repository), measured by the same code in a git
worktree; they are null where the repository does not have that commit. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
BEFORE = "0674d2ea"
COMMANDS = sorted(path.stem for path in (REPOSITORY / "pipelines").glob("*.py"))
HOOK = """
import importlib, json, os, sys, time

def install(folder):
    bootstrap = importlib._bootstrap
    original, state = bootstrap._find_and_load, {"depth": 0, "cpu": 0.0}

    def find_and_load(name, import_):
        if state["depth"]:
            return original(name, import_)
        state["depth"], started = 1, time.thread_time()
        try:
            return original(name, import_)
        finally:
            spent = time.thread_time() - started
            state["depth"], state["cpu"] = 0, state["cpu"] + spent
            if spent > 0.002:
                told = {"program": sys.argv[0] if hasattr(sys, "argv") else "", "cpu": state["cpu"]}
                with open(os.path.join(folder, str(os.getpid())), "w") as file:
                    json.dump(told, file)

    bootstrap._find_and_load = find_and_load

if "SIGRL_BENCH_IMPORTS" in os.environ:
    install(os.environ["SIGRL_BENCH_IMPORTS"])
"""
"""CPU time of imports at depth 0, written to a file for each process."""


def seconds_of(command: list[str], **options: Any) -> float:
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr}")
    return time.monotonic() - started


def help_times(rounds: int) -> dict[str, float]:
    """Medians, in seconds, of `import tyro` and of every help, run in turns."""
    commands = {name: [f"pipelines/{name}.py", "--help"] for name in COMMANDS}
    commands |= {f"{name} PRESET": [f"pipelines/{name}.py", "default", "--help"] for name in ("train", "tune")}
    commands["tyro"] = ["-c", "import tyro"]
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            times[name].append(seconds_of([sys.executable, *command], cwd=REPOSITORY))
    return {name: statistics.median(values) for name, values in times.items()}


class Tree:
    """A checkout of some version, and a folder for what its commands write."""

    def __init__(self, checkout: Path, out: Path) -> None:
        self.checkout, self.out = checkout, out
        out.mkdir(parents=True)
        (out / "hook").mkdir()
        (out / "hook" / "sitecustomize.py").write_text(HOOK)
        images = out / "images" / "cat"
        images.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for number in range(12):
            pixels = rng.integers(0, 255, (96, 96, 3), np.uint8)
            Image.fromarray(pixels).save(images / f"{number}.jpg")
        (out / "one").mkdir()
        shutil.copy(images / "0.jpg", out / "one" / "0.jpg")
        make = "from pathlib import Path; from tests.conftest import untrained_checkpoint as make; import sys; "
        seconds_of([sys.executable, "-c", f"{make} make(Path(sys.argv[1]))", str(out / "checkpoint")], **self.place())

    def place(self) -> dict[str, Any]:
        path = os.pathsep.join([str(self.out / "hook"), str(self.checkout)])
        return {"cwd": self.checkout, "env": {**os.environ, "PYTHONPATH": path, "RAY_worker_niceness": "0"}}

    def run(self, name: str, *arguments: str) -> dict[str, float]:
        """Runs a command once; returns its seconds and its import times."""
        folder = self.out / "imports"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        place = self.place()
        place["env"]["SIGRL_BENCH_IMPORTS"] = str(folder)
        command = [sys.executable, str(self.checkout / "pipelines" / f"{name}.py"), *arguments]
        seconds = seconds_of(command, **place)
        processes = [json.loads(path.read_text()) for path in folder.iterdir()]
        workers = [each["cpu"] for each in processes if each["program"].endswith("default_worker.py")]
        drivers = [each["cpu"] for each in processes if each["program"].endswith(f"{name}.py")]
        return {"seconds": seconds, "worker": max(workers, default=0.0), "driver": max(drivers, default=0.0)}

    def tag_one(self) -> dict[str, float]:
        out = self.out / f"tags{time.time_ns()}"
        flags = {"--checkpoint": self.out / "checkpoint", "--images": self.out / "one", "--out": out}
        return self.run("tag", *(str(word) for pair in flags.items() for word in pair))

    def preprocess(self) -> dict[str, float]:
        out = self.out / "shards"
        shutil.rmtree(out, ignore_errors=True)
        return self.run("preprocess", "--corpus", "folder", "--images", str(self.out / "images"), "--out", str(out))

    def train(self) -> dict[str, float]:
        out = self.out / f"run{time.time_ns()}"
        flags = ["--scale.workers", "1", "--training.epochs", "1", "--training.batch-size", "4"]  # of both versions
        return self.run("train", "quickstart", "--data", str(self.out / "shards"), "--out", str(out), *flags)


def stages(tree: Tree, quick: bool) -> dict[str, Callable[[], dict[str, float]]]:
    short = {"tag": tree.tag_one, "preprocess": tree.preprocess}
    return short if quick else {**short, "train": tree.train}


def has_commit() -> bool:
    command = ["git", "cat-file", "-e", f"{BEFORE}^{{commit}}"]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_start"))
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    shutil.rmtree(out, ignore_errors=True)
    helps = help_times(3 if arguments.quick else 9)
    slowest = max(COMMANDS, key=lambda name: helps[name])
    trees, worktree = {"after": Tree(REPOSITORY, out / "after")}, out / "worktree"
    if has_commit():
        git = ["git", "-C", str(REPOSITORY), "worktree"]
        subprocess.run([*git, "add", "--detach", "--force", str(worktree), BEFORE], capture_output=True, check=True)
    try:
        if worktree.exists():
            trees["before"] = Tree(worktree, out / "before")
        measured: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in trees}
        for _ in range(1 if arguments.quick else 3):
            for name, tree in trees.items():
                for stage, run in stages(tree, arguments.quick).items():
                    measured[name].setdefault(stage, []).append(run())
    finally:
        if worktree.exists():
            subprocess.run([*git, "remove", "--force", str(worktree)], capture_output=True, check=True)

    def median(tree: str, stage: str, figure: str) -> float | None:
        runs = measured.get(tree, {}).get(stage)
        return round(statistics.median(run[figure] for run in runs), 2) if runs else None

    figures: dict[str, Any] = {
        "help_of_tyro": round(helps[slowest] / helps["tyro"], 2),
        "slowest_help": slowest,
        "preset_help_of_tyro": round(max(helps["train PRESET"], helps["tune PRESET"]) / helps["tyro"], 2),
        "tyro_s": round(helps["tyro"], 3),
    }
    for tree in ("after", "before"):
        figures[tree] = {
            "tag_one_s": median(tree, "tag", "seconds"),
            "worker_import_cpu_s": {stage: median(tree, stage, "worker") for stage in measured["after"]},
            "driver_import_cpu_s": {stage: median(tree, stage, "driver") for stage in measured["after"]},
        }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
