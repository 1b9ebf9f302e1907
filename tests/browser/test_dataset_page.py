"""The page about a shard folder in a real Chromium: a thousand labels, strange names, light and dark, every width."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser

from sigrl_core.data.shards import ShardFolder
from sigrl_core.report.dataset import write_dataset_page
from tests.browser.conftest import (
    IMAGES,
    Visit,
    assert_light_and_dark_can_be_read,
    assert_no_sideways_scrolling,
    assert_one_file_that_runs_nothing,
)
from tests.conftest import vocabulary_of, write_shards

pytestmark = pytest.mark.browser

ATTACK = '<script>document.title="owned"</script><img src=x onerror=alert(1)>'
STRANGE = [
    ATTACK,
    "x" * 200,
    "שלום עולם",
    "كلب (صغير)",
    "日本語のとても長いラベル",
    "a\u202eb",
    "👩‍👩‍👧‍👦 family",
    "\"quotes\" & 'more'",
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with 1,000 labels in 60 images, one of them a strip; 100 labels never occur, and some are unknown."""
    names = [*STRANGE, *(f"label {c}" for c in range(992 - 100))]
    vocabulary = vocabulary_of(names, [f"unseen label {c}" for c in range(100)])
    rng = np.random.default_rng(0)
    likely_C = np.minimum(0.9, 4 / np.arange(1, 1001))
    states_NC = np.where(rng.random((60, 1000)) < likely_C, 1, rng.choice([-1, 0], (60, 1000))).astype(np.int8)
    states_NC[:, 800:] = -1
    jpegs = []
    for number in range(60):
        size = (2000, 20) if number == 30 else (int(rng.integers(100, 400)), int(rng.integers(100, 300)))
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize(size).save(stream := io.BytesIO(), "JPEG")
        jpegs.append(stream.getvalue())
    root = tmp_path_factory.mktemp("dataset") / "shards"
    folder = write_shards(root, vocabulary, states_NC, jpegs)
    return Path(write_dataset_page(ShardFolder.open(folder.uri))).as_uri()


def test_it_is_one_file_that_runs_nothing(browser: Browser, address: str) -> None:
    visit = Visit(browser, address)
    assert_one_file_that_runs_nothing(visit, address, "SigRL dataset")
    shown = visit.page.locator(".bars .name").all_text_contents()
    assert set(STRANGE) <= set(shown)


def test_what_a_reader_looks_for_is_there(browser: Browser, address: str) -> None:
    page = Visit(browser, address).page
    images = page.evaluate(IMAGES)
    assert len(images) == 24
    assert all(width > 0 and text for width, text in images)
    assert max(page.evaluate("[...document.images].map(image => image.getBoundingClientRect().height)")) < 200
    assert page.locator("h1, h2").count() == 8
    links = page.evaluate(
        "[...document.querySelectorAll('nav a, .worth a')].map(a => !!document.querySelector(a.hash))"
    )
    assert links == [True] * len(links)
    assert len(links) > 7
    assert page.locator(".matrix tbody tr").count() == 40
    assert page.locator(".matrix tbody tr td").count() == 1600
    drawn = page.evaluate("[...document.querySelectorAll('svg[role=img]')].map(s => s.getBoundingClientRect().height)")
    assert len(drawn) == 4
    assert all(height > 100 for height in drawn)


def test_light_and_dark_differ_and_both_can_be_read(browser: Browser, address: str) -> None:
    assert_light_and_dark_can_be_read(browser, address)


@pytest.mark.parametrize("width", [1280, 768, 400, 320])
def test_the_page_never_scrolls_sideways(browser: Browser, address: str, width: int) -> None:
    assert_no_sideways_scrolling(browser, address, width)
