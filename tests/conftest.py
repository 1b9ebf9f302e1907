"""What tests of every tier share: a local Ray for the whole session, made-up images, the real photographs."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["RAY_AUTH_MODE"] = "disabled"  # read when ray is imported
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"  # Ray Train looks after its workers that often, not each 2 s
os.environ["OMP_WAIT_POLICY"] = "passive"  # threads that wait leave the processor to other processes; read by torch
os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # workers of a Ray inherit what is set when it starts
if not Path("/dev/nvidia0").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are defined

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from sigrl_core.data.label_states import count_states, encode_states
from sigrl_core.data.shards import QUARANTINE_SCHEMA, SCHEMA_VERSION, SHARD_SCHEMA, ShardFolder
from sigrl_core.demo import toybox
from sigrl_core.io.checksums import sha256_of, with_checksum
from sigrl_core.io.parquet import to_parquet
from sigrl_core.labels.edges import LabelEdges
from sigrl_core.labels.vocabulary import Label, Vocabulary
from tests.cpu_time import CpuMeter

if TYPE_CHECKING:  # torch takes seconds to import, and many tests do without
    from sigrl_core.inference.tagger import Tagger

REPOSITORY = Path(__file__).resolve().parents[1]
COCO160 = REPOSITORY.parent / "shared" / "data" / "coco160"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="long fault and load tests in full")


@pytest.fixture(scope="session")
def soak(request: pytest.FixtureRequest) -> bool:
    """Whether long tests run in their full form."""
    return bool(request.config.getoption("--soak"))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray of four logical CPUs, started as the commands start theirs."""
    import ray

    from sigrl_core.on_ray.session import connect

    connect(object_store_bytes=300_000_000)
    yield
    ray.shutdown()


@pytest.fixture
def in_process(ray_cluster) -> Iterator[None]:
    """Parts and trainings run in this process: for tests that are not about workers."""
    from tests.in_process import partitions_here, training_here

    with partitions_here(), training_here():
        yield


@pytest.fixture(scope="session")
def make_image() -> Callable[..., Image.Image]:
    """A function (seed, width, height) -> RGB image: smooth colours, different for every seed."""

    def make(seed: int, width: int = 64, height: int = 48) -> Image.Image:
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    return make


@pytest.fixture
def images(tmp_path: Path, make_image) -> Path:
    """A folder of 12 small JPEGs: six in `cat/`, six in `dog/`, sizes 60x40 to 71x51."""
    folder = tmp_path / "pictures"
    for i in range(12):
        path = folder / ("cat" if i < 6 else "dog") / f"{i:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        make_image(i, 60 + i, 40 + i).save(path, quality=85)
    return folder


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    """A function (image, format, **options of PIL) -> bytes."""

    def encode(image: Image.Image, format: str = "JPEG", **options) -> bytes:
        stream = io.BytesIO()
        image.save(stream, format, **options)
        return stream.getvalue()

    return encode


@pytest.fixture(scope="session")
def coco160() -> Path:
    if not COCO160.is_dir():
        pytest.skip(f"real photographs are not here: {COCO160}")
    return COCO160


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python arguments...` as a user would, from the repository's folder unless `cwd` says otherwise."""

    def run(*arguments: object, cwd: Path = REPOSITORY, timeout: float = 480) -> subprocess.CompletedProcess[str]:
        full = [sys.executable, *map(str, arguments)]
        return subprocess.run(full, cwd=cwd, capture_output=True, text=True, timeout=timeout)

    return run


# ---- small shard folders and untrained models; `from tests.conftest import ...` ----


def fingerprint(folder: Path) -> dict[str, str]:
    """sha256 of every file in a folder but those that say who worked when."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    hashes = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {
        name: sha256
        for name, sha256 in hashes.items()
        if name not in ("run_log.jsonl", "tagging.html") and not name.startswith("parts/")
    }


def tagged_rows(out: Path) -> list[dict[str, Any]]:
    """What tag.py wrote, as lines, in the order of keys."""
    import pyarrow.parquet as pq

    from sigrl_core.inference.tag_files import to_json_lines

    rows = [json.loads(line) for line in to_json_lines(pq.read_table(out / "tags")).splitlines()]
    return sorted(rows, key=lambda row: row["uri"])


def vocabulary_of(seen: Sequence[str], unseen: Sequence[str] = ()) -> Vocabulary:
    return Vocabulary((*(Label(name=n) for n in seen), *(Label(name=n, group="unseen") for n in unseen)))


def random_states(images: int, labels: int) -> np.ndarray:
    states_NC = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), (images, labels), p=[0.7, 0.3])
    states_NC[np.arange(labels) % images, np.arange(labels)] = 1  # every label occurs
    return states_NC


def write_shards(
    root: Path,
    vocabulary: Vocabulary,
    states_NC: np.ndarray,
    jpegs: Sequence[bytes] | None = None,
    rows_per_shard: int = 5,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.0,
) -> ShardFolder:
    """A shard folder with these label states, of these images or of plain coloured ones."""
    (root / "shards").mkdir(parents=True)
    rows = []
    for number, states_C in enumerate(states_NC):
        if jpegs is None:
            Image.new("RGB", (64, 48), (40 * number % 256, 90, 160)).save(stream := io.BytesIO(), "JPEG")
            data = stream.getvalue()
        else:
            data = jpegs[number]
        width, height = Image.open(io.BytesIO(data)).size
        row = {"uri": f"{number:03d}.jpg", "sha256": f"{number:064x}", "image": data}
        rows.append({**row, "width": width, "height": height, "label_states": encode_states(states_C)})
    listed = []
    for start in range(0, len(rows), rows_per_shard):
        table = pa.Table.from_pylist(rows[start : start + rows_per_shard], SHARD_SCHEMA)
        data, name = to_parquet(table), f"{len(listed):05d}.parquet"
        (root / "shards" / name).write_bytes(data)
        listed.append({"name": name, "rows": table.num_rows, "sha256": sha256_of(data)})
    quarantine = to_parquet(QUARANTINE_SCHEMA.empty_table())
    (root / "quarantine.parquet").write_bytes(quarantine)
    (root / "vocabulary.json").write_text(vocabulary.to_json())
    manifest = {
        "kind": "shards",
        "schema_version": SCHEMA_VERSION,
        "vocabulary_hash": vocabulary.hash,
        "num_labels": len(vocabulary),
        "rows_in": len(rows),
        "rows_out": len(rows),
        "quarantined": 0,
        "duplicates": 0,
        "split": {"seed": 0, "validation": validation_fraction, "test": test_fraction},
        "quarantine": {"name": "quarantine.parquet", "sha256": sha256_of(quarantine)},
        "shards": listed,
        "label_counts": count_states(states_NC, vocabulary),
    }
    (root / "manifest.json").write_text(json.dumps(with_checksum(manifest)))
    return ShardFolder.open(str(root))


def toybox_states(images: Sequence[toybox.Scene], vocabulary: Vocabulary) -> np.ndarray:
    """int8 [N,C]: all labels of each image are known."""
    return np.array([[1 if n in p.labels else -1 for n in vocabulary.names] for p in images], np.int8)


@pytest.fixture(scope="session")
def toybox_shards(tmp_path_factory: pytest.TempPathFactory) -> ShardFolder:
    """40 toybox images with all their 66 labels, in six shards, a quarter of them held out."""
    images = list(toybox.scenes("test", range(40), size=48, seed=0))
    vocabulary = toybox.vocabulary()
    return write_shards(
        tmp_path_factory.mktemp("toybox") / "shards",
        vocabulary,
        toybox_states(images, vocabulary),
        [image.jpeg for image in images],
        rows_per_shard=7,
        validation_fraction=0.25,
    )


def untrained_checkpoint(folder: Path, seed: int = 0, backbone: str = "toybox-vit") -> Path:
    """The quickstart's model of the built-in corpus's labels, saved as training saves it."""
    import torch

    from sigrl_core.config.presets import get_preset
    from sigrl_core.model.backbone import load_backbone
    from sigrl_core.model.checkpoint import save_checkpoint
    from sigrl_core.model.model import SigRLModel

    preset = get_preset("quickstart")
    config = replace(preset, backbone=replace(preset.backbone, name=backbone, pretrained="random"))
    torch.manual_seed(seed)
    model = SigRLModel.start(load_backbone(config.backbone), config, toybox.vocabulary()).eval()
    save_checkpoint(folder, model, config, {"selected": {}, "history": []})
    return folder


def calibrated_checkpoint(folder: Path, seed: int = 0) -> Path:
    """An untrained one whose probabilities are made up."""
    from sigrl_core.config import CalibrateConfig
    from sigrl_core.model.calibration import fit_calibration, sigmoid
    from sigrl_core.model.checkpoint import add_calibration

    untrained_checkpoint(folder, seed)
    rng, vocabulary = np.random.default_rng(0), toybox.vocabulary()
    logits_NC = rng.normal(0, 1, (400, len(vocabulary)))
    states_NC = np.where(rng.random(logits_NC.shape) < sigmoid(logits_NC), 1, -1).astype(np.int8)
    config = CalibrateConfig(checkpoint=str(folder), data="made up")
    add_calibration(str(folder), fit_calibration(logits_NC, states_NC, vocabulary, config))
    return folder


def tagger_of(
    vocabulary: Vocabulary, reconstructs: bool = True, seed: int = 0, known: LabelEdges | None = None, **graph: Any
) -> Tagger:
    """An untrained small model; fields of its GraphConfig by name."""
    import torch

    from sigrl_core.config import BackboneConfig, GraphConfig, ReconstructionConfig, RunConfig
    from sigrl_core.inference.tagger import Tagger
    from sigrl_core.model.backbone import load_backbone
    from sigrl_core.model.checkpoint import Checkpoint
    from sigrl_core.model.model import SigRLModel

    config = RunConfig(
        backbone=BackboneConfig(name="toybox-vit", pretrained="random", frozen_blocks=2),
        graph=GraphConfig(**{"hidden": 8, "heads": 2, "residual": True, **graph}),
        reconstruction=ReconstructionConfig(enabled=reconstructs),
    )
    torch.manual_seed(seed)
    model = SigRLModel.start(load_backbone(config.backbone), config, vocabulary, known)
    return Tagger(Checkpoint(uri="runs/a & b", model=model, config=config, metrics={}))


def without_clock(metrics: dict[str, Any]) -> dict[str, Any]:
    """What training measured, without seconds, rates and memory, which differ from run to run."""
    return {key: value for key, value in metrics.items() if not key.endswith(("_s", "seconds", "_mb"))}


# ---- tiers: every test belongs to one, long ones first so that both processes end together, each with a budget ----

TIER_BUDGET_S = {"unit": 900, "parity": 180, "ray": 3600, "e2e": 4500, "browser": 240}
"""CPU seconds of the tests of a tier and of all processes that they start. Only CI (`CI=true`) fails beyond them.
The same tests take up to 1.8 times as many on another machine, so a budget is twice what a quick machine needs."""

LONGEST = (
    *("test_train_failures", "test_three_nodes", "test_tune", "test_plugins", "test_quickstart", "test_train"),
    *("test_serve", "test_guides", "test_job_submit", "test_site", "test_tag", "test_preprocess"),
)
"""Files that take a minute or more, longest first: started last, one of them would keep one process waiting."""

_tier_seconds = dict.fromkeys(TIER_BUDGET_S, 0.0)
_meter: CpuMeter | None = None


def pytest_sessionstart(session: pytest.Session) -> None:
    """Starts the measurement in the processes that run tests; of pytest-xdist those are its workers."""
    global _meter
    if hasattr(session.config, "workerinput") or not session.config.getoption("numprocesses", None):
        _meter = CpuMeter()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    report.cpu_seconds = _meter.lap() if _meter else 0.0
    return report


def tier_of(item: pytest.Item) -> str:
    tiers = [tier for tier in TIER_BUDGET_S if item.get_closest_marker(tier)]
    if "soak" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("soak"):
        raise pytest.UsageError(f"{item.nodeid}: has a long form, which only runs where it is marked soak")
    if len(tiers) != 1:
        raise pytest.UsageError(f"{item.nodeid}: marked {tiers}, expected one of {', '.join(TIER_BUDGET_S)}")
    return tiers[0]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sorts tests: the longest files first, then by tier, long tiers first; leaves out those with a long form only."""
    tiers = list(reversed(TIER_BUDGET_S))
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (order.get(item.path.stem, len(order)), tiers.index(tier_of(item))))
    if not config.getoption("--soak"):
        only_long = [item for item in items if any(mark.kwargs.get("only") for mark in item.iter_markers("soak"))]
        items[:] = [item for item in items if item not in only_long]
        config.hook.pytest_deselected(items=only_long)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for tier in _tier_seconds.keys() & report.keywords.keys():
        _tier_seconds[tier] += report.cpu_seconds
    log = os.environ.get("SIGRL_TEST_CPU_LOG")
    if log and "PYTEST_XDIST_WORKER" not in os.environ:
        line = {"test": report.nodeid, "when": report.when, "cpu_s": round(report.cpu_seconds, 2)}
        with open(log, "a") as file:
            file.write(json.dumps({**line, "wall_s": round(report.duration, 2), "outcome": report.outcome}) + "\n")


def over_budget() -> list[str]:
    return [tier for tier, seconds in _tier_seconds.items() if seconds > TIER_BUDGET_S[tier]]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("CI") == "true" and over_budget() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter) -> None:
    spent = ", ".join(
        f"{tier} {seconds:.0f} of {TIER_BUDGET_S[tier]} s" for tier, seconds in _tier_seconds.items() if seconds
    )
    terminalreporter.write_line(f"CPU time by tier: {spent or 'nothing ran'}")
    for tier in over_budget():
        terminalreporter.write_line(f"tier {tier} is over its budget of CPU time (an error where CI=true)", red=True)


@pytest.fixture
def read_corpus(tmp_path_factory):
    """(corpus, images, annotations) -> its rows and labels, by way of the file that preprocessing works from."""
    from sigrl_core.corpora import get_corpus
    from sigrl_core.corpora.listing_file import list_partitions, read_partition, write_listing

    def read(corpus: str, images: Path | str, annotations: Path | str | None = None, rows_per_partition: int = 2):
        listing = get_corpus(corpus)(str(images), annotations and str(annotations))
        file = str(tmp_path_factory.mktemp("listing") / "listing.parquet")
        listed = write_listing(listing, file, rows_per_partition=rows_per_partition)
        rows = [row for part in list_partitions(file) for row in read_partition(file, part)]
        assert listed.num_rows == len(rows)
        return [row._replace(etag=None) for row in rows], listed.vocabulary  # which says when files were written

    return read
