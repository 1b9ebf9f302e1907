"""The page of a search in a real Chromium: nothing fetched, nothing run, light and dark, wide and narrow."""

import pytest
from playwright.sync_api import Browser

from sigrl_core.report.search import write_search_page
from tests.browser.conftest import (
    Visit,
    assert_light_and_dark_can_be_read,
    assert_no_sideways_scrolling,
    assert_one_file_that_runs_nothing,
    serious_violations,
)
from tests.searches import open_study, run_trials

pytestmark = pytest.mark.browser

TRIALS = 24


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("search")
    search = open_study(root, trials=TRIALS)
    run_trials(search, TRIALS)
    write_search_page(search)
    return (root / "search.html").as_uri()


def test_it_is_one_file_that_runs_nothing(browser: Browser, address: str) -> None:
    visit = Visit(browser, address)
    assert_one_file_that_runs_nothing(visit, address, "SigRL search")


def test_what_a_reader_looks_for_is_there(browser: Browser, address: str) -> None:
    page = Visit(browser, address).page
    charts = page.locator("svg[role=img]")
    assert charts.count() == 3
    by_trial, by_epoch, values = (charts.nth(number) for number in range(3))
    scored = TRIALS * 3 // 4  # but for those that failed
    assert by_trial.locator("circle").count() == 2 * scored  # and the best so far
    assert by_epoch.locator("g:not(.grid) path").count() == scored
    assert values.locator("g:not(.grid) path").count() == scored
    assert "optim.lr" in (values.text_content() or "")
    shares = [float(text.rstrip(" %")) for text in page.locator(".bars .value").all_inner_texts()]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=len(shares))
    page.locator("summary").click()
    assert page.locator("tbody tr").count() == TRIALS
    objectives = [float(text) for text in page.locator("tbody td:nth-child(2)").all_inner_texts() if text]
    assert objectives == sorted(objectives, reverse=True)
    assert len(objectives) == scored
    links = page.evaluate("[...document.querySelectorAll('nav a')].map(a => !!document.querySelector(a.hash))")
    assert links == [True] * 6


def test_axe_finds_nothing_serious(browser: Browser, address: str) -> None:
    assert serious_violations(Visit(browser, address).page) == []


def test_light_and_dark_differ_and_both_can_be_read(browser: Browser, address: str) -> None:
    assert_light_and_dark_can_be_read(browser, address)


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_the_page_never_scrolls_sideways(browser: Browser, address: str, width: int) -> None:
    assert_no_sideways_scrolling(browser, address, width)
