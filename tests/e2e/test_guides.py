"""Every block of commands of the README and the guides, word for word, in the order of the site, in one folder.

In the short form the process of the tests runs the commands of the blocks, and a server that several pages start is
started once; in the long form every command is a process.

Those of cluster/ need machines: what of them can be had here is in test_job_submit.py and test_cluster_files.py.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from sigrl_core.data.shards import ShardFolder
from sigrl_core.model.checkpoint import load_checkpoint
from tests.conftest import REPOSITORY, tagged_rows
from tests.in_process import Terminal, partitions_here, training_here
from tests.processes import activated, free_ports, noted, recipe_of, wait_for

pytestmark = pytest.mark.e2e

BACKBONE = "--backbone.name toybox-vit --backbone.pretrained runs/quickstart/clip"
"""In the place of the preset's ViT-B/16, whose weights would be downloaded."""
IMAGES = 480  # a tenth is held out, of which calibration needs ten positives and negatives in each half
LABELS = ("dog", "beach", "a red car")
MORE = {
    "quickstart": "--captioned 64 --labelled 100 --test 20 --clip-epochs 1 --epochs 1",
    "train": f"{BACKBONE} --training.max-steps 2 --training.batch-size 8",
    "cache_features": BACKBONE,
}
MORE["tune"] = f"{MORE['train']} --trials 2"


def guides() -> list[Path]:
    """README and what its site's index lists as guides."""
    listed = re.search(r":caption: Guides\n\n(.*?)```", (REPOSITORY / "docs" / "index.md").read_text(), re.S)
    assert listed
    return [REPOSITORY / "README.md", *(REPOSITORY / "docs" / f"{name}.md" for name in listed[1].split())]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.M | re.S)


def as_here(block: str, port: int) -> str:
    """A block with a model of a few layers and a port that is free; of `make`, what it would run."""

    def line(found: re.Match) -> str:
        return f"{found[0]} {MORE.get(found[1], '')}"

    def made(found: re.Match) -> str:
        recipe = recipe_of(found[1])  # of the others only that they are there
        return recipe if found[1] == "quickstart" else ""

    block = re.sub(r"^make (\w+).*$", made, block, flags=re.M)
    block = block.replace("--backbone.frozen-blocks 12", "--backbone.frozen-blocks 2")
    block = re.sub(r"^\S*python pipelines/(\w+)\.py .*$", line, block, flags=re.M)
    return block.replace("http://localhost:8000", f"http://127.0.0.1:{port}")


@pytest.fixture(scope="module")
def home(tmp_path_factory, make_image) -> Path:
    """A folder as the README supposes: code and environment, images, label lists, lines of labels."""
    home = tmp_path_factory.mktemp("home")
    (home / "pipelines").symlink_to(REPOSITORY / "pipelines")
    (home / "photos").mkdir()
    lines = []
    for number in range(IMAGES):
        make_image(number, 60, 50).save(home / "photos" / f"{number}.jpg")
        labels = [name for bit, name in enumerate(LABELS) if number + 1 & 1 << bit]
        lines.append(json.dumps({"uri": f"{number}.jpg", "labels": labels}) + "\n")
    make_image(0, 60, 50).save(home / "photo.jpg")
    (home / "labels.jsonl").write_text("".join(lines))
    (home / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    (home / "other_labels.txt").write_text("okapi\ndrizzle\nmarket\nFußgängerzone\n42\nharbour\n")
    return home


@pytest.fixture(scope="module")
def run(home: Path, soak: bool, ray_cluster) -> Iterator[Callable[[str], subprocess.CompletedProcess[str]]]:
    """Runs a block of bash in the folder."""
    if soak:
        (home / ".venv").symlink_to(sys.prefix)

        def as_processes(script: str) -> subprocess.CompletedProcess[str]:
            words = ["bash", "-euo", "pipefail", "-c", script]
            return subprocess.run(words, cwd=home, env=activated(), capture_output=True, text=True, timeout=480)

        yield as_processes
        return
    with partitions_here(), training_here():
        terminal = Terminal(home)
        yield lambda script: terminal.run(script, 480)


@pytest.fixture
def serve(home: Path) -> Iterator[Callable[[str, int], None]]:
    """Starts a server by its line of a page, and waits until it would answer; it goes with the page."""
    with noted() as note:

        def started(line: str, port: int) -> None:
            log = home / "serve.log"
            with log.open("w") as out:
                words = [*shlex.split(line), "--port", str(port)]
                process = note(subprocess.Popen(words, cwd=home, env=activated(), stdout=out, stderr=out))
            wait_for(lambda: is_ready(port), process, log)
            processes.append(process)

        processes: list[subprocess.Popen] = []
        yield started
        for process in processes:
            process.terminate()
            process.wait(60)


def is_ready(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/readyz", timeout=5).ok
    except requests.RequestException:  # nobody there yet, or no answer yet
        time.sleep(0.2)
        return False


@pytest.mark.soak
@pytest.mark.timeout(900)  # a page has up to six commands, each with a Ray of its own in the long form
@pytest.mark.parametrize("page", guides(), ids=lambda page: page.stem)
def test_the_commands_of(page: Path, run, serve, soak: bool) -> None:
    assert blocks(page), f"{page}: a guide without commands"
    if "\ncurl " in page.read_text() and not shutil.which("curl"):
        pytest.skip("no curl here")
    (port,) = free_ports(1)
    for block in blocks(page):
        if block.startswith("python pipelines/serve.py --checkpoint"):
            if soak or page == [other for other in guides() if block in blocks(other)][-1]:
                serve(block, port)
            continue
        script = as_here(block, port)
        done = run(script)
        assert done.returncode == 0, (script, done.stderr)
        assert "Traceback" not in done.stderr
        assert done.stdout.strip() or not script.strip(), script


@pytest.mark.soak
@pytest.mark.parametrize(
    "page", [page for page in guides() if "```python" in page.read_text()], ids=lambda page: page.stem
)
def test_the_python_of(page: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(home)
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S):
        exec(compile(block, page.name, "exec"), {})
        assert capsys.readouterr().out.strip(), block


@pytest.mark.soak
@pytest.mark.parametrize("page", [*guides(), REPOSITORY / "docs" / "operating.md"], ids=lambda page: page.stem)
def test_the_files_of(page: Path, home: Path) -> None:
    """Every file below runs/ that a page names is there after the blocks of all pages."""
    for path in re.findall(r"`(runs/[\w./*-]+)`", page.read_text()):
        assert list(home.glob(path.rstrip("/"))), f"{page}: nothing wrote {path}"


@pytest.mark.soak
def test_what_they_leave(home: Path) -> None:
    runs = home / "runs"
    for name, count in (("tags", IMAGES), ("bucket_tags", IMAGES + 1)):  # with the one that came later
        assert len(tagged_rows(runs / name)) == count
        assert all(len(row["tags"]) == 5 for row in tagged_rows(runs / name))
    assert {tag["label"] for row in tagged_rows(runs / "sure_tags") for tag in row["tags"]} <= set(LABELS)
    assert {tag["label"] for row in tagged_rows(runs / "described_tags") for tag in row["tags"]} == {
        "dog",
        "SKU-4711",
        "okapi",
    }
    assert (runs / "calibrated_evaluation" / "report.html").exists()
    counts = ShardFolder.open(str(runs / "positives")).manifest["label_counts"]
    assert all(count["unknown"] > 200 > count["absent"] for count in counts.values())  # absent in what is held out
    assert load_checkpoint(str(runs / "single")).config.loss.kind == "em"
    assert load_checkpoint(str(runs / "listed")).config.graph.kind == "listed"
    assert ShardFolder.open(str(runs / "features")).kind == "features"
    assert load_checkpoint(str(runs / "head")).config.backbone.frozen_blocks == 2
    assert load_checkpoint(str(runs / "best")).config.optim == load_checkpoint(str(runs / "search")).config.optim
    assert not (runs / "large").exists()  # a dry run writes nothing
    print(f"{sum(len(blocks(page)) for page in guides())} blocks of {len(guides())} pages")
