"""The report in a real Chromium: nothing fetched, nothing run, light and dark, wide and narrow."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from sigrl_core.report import write_report

pytestmark = pytest.mark.browser

# the made-up evaluation of the unit tests, hostile label included
_spec = importlib.util.spec_from_file_location("report_example", Path(__file__).parents[1] / "unit" / "test_report.py")
assert _spec is not None
assert _spec.loader is not None
made_up = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made_up)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on PATH; install one to test the report page")
    quiet = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-quic"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=quiet)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("report")
    names = [f"seen label {c}" for c in range(60)]
    vocabulary = made_up.vocabulary_of([*names, made_up.ATTACK, "x" * 200], [f"unseen label {c}" for c in range(10)])
    pieces = made_up.example(root, vocabulary, made_up.random_states(30, len(vocabulary)), compare=True)
    write_report(*pieces, made_up.HISTORY, str(root))
    return (root / "report.html").as_uri()


class Visit:
    """A page and everything it did."""

    def __init__(self, browser: Browser, address: str, width: int = 1280, scheme: str = "light") -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page: Page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.goto(address)


def test_it_is_one_file_that_runs_nothing(browser: Browser, address: str) -> None:
    visit = Visit(browser, address)
    assert [url for url in visit.requests if not url.startswith("data:")] == [address]
    assert visit.complaints == []
    assert visit.page.title() == "SigRL evaluation"
    assert visit.page.evaluate("document.scripts.length") == 0
    assert made_up.ATTACK in visit.page.locator(".bars").inner_text()


def test_what_a_reader_looks_for_is_there(browser: Browser, address: str) -> None:
    page = Visit(browser, address).page
    assert page.locator(".headline tbody tr th").all_inner_texts() == [
        "SigRL", "SigRL, any vocabulary", "MKT-style", "CLIP, global", "CLIP, global + local",
    ]  # fmt: skip
    assert page.locator(".headline tbody tr").first.locator("td").count() == 8
    pictures = page.evaluate("[...document.images].map(image => [image.complete, image.naturalWidth, image.alt])")
    assert len(pictures) == 24 + 4 + 4 * 3  # with tags, and four with a heat map for each of three labels
    assert all(complete and width > 0 and alt for complete, width, alt in pictures)
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


def test_light_and_dark_differ_and_both_can_be_read(browser: Browser, address: str) -> None:
    pages = {scheme: Visit(browser, address, scheme=scheme).page for scheme in ("light", "dark")}
    shots = {scheme: page.screenshot() for scheme, page in pages.items()}
    assert shots["light"] != shots["dark"]
    contrast = """() => {
        const light = colour => {
            const parts = colour.match(/[\\d.]+/g).slice(0, 3).map(p => p / 255);
            const [r, g, b] = parts.map(p => p <= 0.04045 ? p / 12.92 : ((p + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const behind = element => {
            for (let e = element; e; e = e.parentElement) {
                const colour = getComputedStyle(e).backgroundColor;
                if (colour !== 'rgba(0, 0, 0, 0)') return colour;
            }
        };
        const of = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
        const texts = [...document.querySelectorAll('p, dt, dd, a, td, th, li, summary, strong, .name, .diamond')];
        const drawn = [...document.querySelectorAll('svg text')];
        return Math.min(...texts.map(e => of(getComputedStyle(e).color, behind(e))),
                        ...drawn.map(e => of(getComputedStyle(e).fill, behind(e))));
    }"""
    for scheme, page in pages.items():
        assert page.evaluate(contrast) >= 4.5, scheme


@pytest.mark.parametrize("width", [1280, 768, 390, 320])
def test_the_page_never_scrolls_sideways(browser: Browser, address: str, width: int) -> None:
    page = Visit(browser, address, width=width).page
    page.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
