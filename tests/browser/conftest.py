"""A real Chromium, and pages in it whose requests and messages are recorded."""

import shutil
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = """async () => {
    for (const image of document.images) image.loading = 'eager';
    await Promise.all([...document.images].map(image => image.decode()));
    return [...document.images].map(image => [image.naturalWidth, image.alt]);
}"""
"""Script that loads all images of a page and returns the width and the text alternative of each."""

MIN_CONTRAST = """() => {
    const light = colour => {
        const parts = colour.match(/[\\d.]+/g).slice(0, 3).map(p => colour.startsWith('color(') ? +p : p / 255);
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
    const texts = [...document.querySelectorAll('p, dt, dd, a, td, th, li, summary, strong, code, .name, .diamond')];
    const drawn = [...document.querySelectorAll('svg text')];
    return Math.min(...texts.map(e => of(getComputedStyle(e).color, behind(e))),
                    ...drawn.map(e => of(getComputedStyle(e).fill, behind(e))));
}"""
"""Script that returns the lowest contrast of a text with its background; WCAG AA requires 4.5."""


@pytest.fixture(scope="module")  # while it runs, no other event loop can
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on PATH; install one to test the pages")
    quiet = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-quic"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=quiet)
        yield browser
        browser.close()


class Visit:
    """An open page with its requests, and its messages on the console, errors and dialogs."""

    def __init__(self, browser: Browser, address: str, width: int = 1280, scheme: str = "light") -> None:
        self.requests: list[str] = []
        self.messages: list[str] = []
        self.page: Page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.messages.append(dialog.message), dialog.dismiss()))
        self.page.goto(address)


def assert_one_file_that_runs_nothing(visit: Visit, address: str, title: str) -> None:
    assert [url for url in visit.requests if not url.startswith("data:")] == [address]
    assert visit.messages == []
    assert visit.page.title() == title
    assert visit.page.evaluate("document.scripts.length") == 0


def serious_violations(page: Page) -> list[str]:
    """Returns the rules of axe that the page violates in a serious or critical way."""
    violations = Axe().run(page).response["violations"]
    return [each["id"] for each in violations if each["impact"] in ("serious", "critical")]


def assert_light_and_dark_can_be_read(browser: Browser, address: str) -> None:
    pages = {scheme: Visit(browser, address, scheme=scheme).page for scheme in ("light", "dark")}
    shots = {scheme: page.screenshot() for scheme, page in pages.items()}
    assert shots["light"] != shots["dark"]
    for scheme, page in pages.items():
        assert page.evaluate(MIN_CONTRAST) >= 4.5, scheme


def assert_no_sideways_scrolling(browser: Browser, address: str, width: int) -> None:
    """Checks the page with its table open."""
    page = Visit(browser, address, width=width).page
    page.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
