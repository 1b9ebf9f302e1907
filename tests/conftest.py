"""What tests of every tier share: a local Ray for the whole session, made-up pictures, the real photographs."""

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"  # read when ray is imported
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
COCO160 = REPOSITORY.parent / "shared" / "data" / "coco160"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray of four logical CPUs, started as the commands start theirs."""
    import ray

    from sigrl_core.on_ray.session import connect

    connect(object_store_bytes=300_000_000)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., Image.Image]:
    """A function (seed, width, height) -> RGB picture: smooth colours, different for every seed."""

    def make(seed: int, width: int = 64, height: int = 48) -> Image.Image:
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    return make


@pytest.fixture
def pictures(tmp_path: Path, make_picture) -> Path:
    """A folder of 12 small JPEGs: six in `cat/`, six in `dog/`, sizes 60x40 to 71x51."""
    folder = tmp_path / "pictures"
    for i in range(12):
        path = folder / ("cat" if i < 6 else "dog") / f"{i:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        make_picture(i, 60 + i, 40 + i).save(path, quality=85)
    return folder


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    """A function (picture, format, **options of PIL) -> bytes."""

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

    def run(*arguments: object, cwd: Path = REPOSITORY, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        full = [sys.executable, *map(str, arguments)]
        return subprocess.run(full, cwd=cwd, capture_output=True, text=True, timeout=timeout)

    return run


# ---- tiers: every test belongs to one, cheap ones first, each with a budget ----

TIER_BUDGET_S = {"unit": 240, "parity": 180, "ray": 420, "e2e": 900, "browser": 180}
"""What a tier may take on two shared cores before the rest of it fails; about three times what it does take."""

_tier_seconds = dict.fromkeys(TIER_BUDGET_S, 0.0)


def tier_of(item: pytest.Item) -> str:
    tiers = [tier for tier in TIER_BUDGET_S if item.get_closest_marker(tier)]
    if len(tiers) != 1:
        raise pytest.UsageError(f"{item.nodeid}: marked {tiers}, expected one of {', '.join(TIER_BUDGET_S)}")
    return tiers[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: list(TIER_BUDGET_S).index(tier_of(item)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    tier = tier_of(item)
    if _tier_seconds[tier] > TIER_BUDGET_S[tier]:
        pytest.fail(f"tier {tier} has used its budget of {TIER_BUDGET_S[tier]} s; make its tests cheaper")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    started = time.monotonic()
    result = yield
    _tier_seconds[tier_of(item)] += time.monotonic() - started
    return result


def pytest_terminal_summary(terminalreporter) -> None:
    spent = ", ".join(
        f"{tier} {seconds:.0f} of {TIER_BUDGET_S[tier]} s" for tier, seconds in _tier_seconds.items() if seconds
    )
    terminalreporter.write_line(f"tiers: {spent or 'nothing ran'}")
