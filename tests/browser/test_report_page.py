"""The report in a real Chromium: nothing fetched, nothing run, light and dark, wide and narrow."""

import importlib.util
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from sigrl_core.report.evaluation import write_report
from tests.browser.conftest import (
    IMAGES,
    Visit,
    assert_light_and_dark_can_be_read,
    assert_no_sideways_scrolling,
    assert_one_file_that_runs_nothing,
    serious_violations,
)

pytestmark = pytest.mark.browser

# the made-up evaluation of the unit tests, hostile label included
_spec = importlib.util.spec_from_file_location("report_example", Path(__file__).parents[1] / "unit" / "test_report.py")
assert _spec is not None
assert _spec.loader is not None
made_up = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made_up)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("report")
    names = [f"seen label {c}" for c in range(60)]
    vocabulary = made_up.vocabulary_of([*names, made_up.ATTACK, "x" * 200], [f"unseen label {c}" for c in range(10)])
    pieces = made_up.example(root, vocabulary, made_up.random_states(30, len(vocabulary)), compare=True)
    write_report(*pieces, made_up.HISTORY, str(root))
    return (root / "report.html").as_uri()


def test_it_is_one_file_that_runs_nothing(browser: Browser, address: str) -> None:
    visit = Visit(browser, address)
    assert_one_file_that_runs_nothing(visit, address, "SigRL evaluation")
    assert made_up.ATTACK in visit.page.locator(".bars").inner_text()


def test_what_a_reader_looks_for_is_there(browser: Browser, address: str) -> None:
    page = Visit(browser, address).page
    assert page.locator(".headline tbody tr th").all_inner_texts() == [
        "SigRL", "SigRL, any vocabulary", "MKT-style", "CLIP, global", "CLIP, global + local",
    ]  # fmt: skip
    assert page.locator(".headline tbody tr").first.locator("td").count() == 8
    images = page.evaluate(IMAGES)
    assert len(images) == 24 + 4 + 4 * 3  # with tags, and four with a heat map for each of three labels
    assert all(width > 0 and alt for width, alt in images)
    headings = page.locator("h1, h2").all_inner_texts()
    assert headings[0] == "SigRL evaluation"
    assert len(headings) == 10
    links = page.evaluate("[...document.querySelectorAll('nav a')].map(a => !!document.querySelector(a.hash))")
    assert links == [True] * 9
    assert page.evaluate("new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size") == 9
    drawn = page.evaluate("[...document.querySelectorAll('svg[role=img]')].map(s => s.getBoundingClientRect().height)")
    assert all(height > 100 for height in drawn)


def test_texts_fit_into_the_boxes_of_the_graph(browser: Browser, address: str) -> None:
    page = Visit(browser, address).page
    room = page.evaluate(
        "[...document.querySelectorAll('.graph g')].map(g => "
        "g.querySelector('rect').getBBox().width - g.querySelector('text').getComputedTextLength())"
    )
    assert len(room) == 72
    assert min(room) > 2


def test_axe_finds_nothing_serious(browser: Browser, address: str) -> None:
    assert serious_violations(Visit(browser, address).page) == []


def test_light_and_dark_differ_and_both_can_be_read(browser: Browser, address: str) -> None:
    assert_light_and_dark_can_be_read(browser, address)


@pytest.mark.parametrize("width", [1280, 768, 390, 320])
def test_the_page_never_scrolls_sideways(browser: Browser, address: str, width: int) -> None:
    assert_no_sideways_scrolling(browser, address, width)
