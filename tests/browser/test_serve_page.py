"""The server's page in a real Chromium: images in, tags out, by mouse and by keyboard, light and dark."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect

from sigrl_core.config.stages import ServeConfig
from sigrl_core.demo import toybox
from sigrl_core.serving.keys import ApiKeys, add_key
from tests.browser.conftest import MIN_CONTRAST, Visit, serious_violations
from tests.conftest import calibrated_checkpoint, untrained_checkpoint
from tests.serving import app_of

pytestmark = pytest.mark.browser


class Site(threading.Thread):
    """The application behind uvicorn, on a port of its own."""

    def __init__(self, config: ServeConfig, keys: ApiKeys | None = None) -> None:
        super().__init__(daemon=True)
        self.server = uvicorn.Server(uvicorn.Config(app_of(config, keys), host="127.0.0.1", port=0, log_level="error"))
        self.start()
        while not self.server.started:
            time.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.address = f"http://127.0.0.1:{port}/"

    def run(self) -> None:
        self.server.run()

    def stop(self) -> None:
        self.server.should_exit = True
        self.join()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    folder = calibrated_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint")
    return ServeConfig(checkpoint=str(folder), max_images=4, requests_per_minute=100_000)


@pytest.fixture(scope="module")
def site(config: ServeConfig) -> Iterator[Site]:
    site = Site(config)
    yield site
    site.stop()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, paths = tmp_path_factory.mktemp("pictures"), []
    for number, image in enumerate(toybox.scenes("test", range(3), size=160, seed=1)):
        paths.append(folder / f"<b>{number}&amp;.jpg")
        paths[-1].write_bytes(image.jpeg)
    return paths


def upload(page: Page, paths: list[Path]) -> None:
    page.locator("#files").set_input_files([str(path) for path in paths])
    expect(page.locator("#status")).to_contain_text(f"for {len(paths)} image")


def test_images_in_and_tags_out(browser: Browser, site: Site, images: list[Path]) -> None:
    visit = Visit(browser, site.address)
    page = visit.page
    expect(page.locator("#model")).to_contain_text("66 labels, calibrated")
    upload(page, images)
    assert page.locator(".result").count() == 3
    assert page.locator("h3").nth(0).inner_text() == "<b>0&amp;.jpg"
    shares = [int(text.split()[0]) for text in page.locator(".result").nth(0).locator(".value").all_inner_texts()]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] >= 50  # where the slider stands
    assert not [url for url in visit.requests if not url.startswith((site.address, "blob:", "data:"))]
    assert visit.messages == []


def test_images_that_come_before_the_model_is_known(browser: Browser, site: Site, images: list[Path]) -> None:
    page, held = Visit(browser, "about:blank").page, []
    page.route("**/v1/model", lambda route: held.append(route))  # Playwright takes no built-in
    page.goto(site.address)
    page.locator("#files").set_input_files([str(images[0])])
    page.wait_for_timeout(500)
    held[0].continue_()
    expect(page.locator("#status")).to_contain_text("for 1 image")
    assert "%" in page.locator(".value").first.inner_text()


def test_the_slider_shows_more_and_fewer(browser: Browser, site: Site, images: list[Path]) -> None:
    page = Visit(browser, site.address).page
    upload(page, images)
    counts = []
    for least in ("0", "0.5", "0.9", "1"):
        page.locator("#threshold").fill(least)
        counts.append(page.locator(".tag").count())
        expect(page.locator("#threshold-value")).to_have_text(f"{float(least):.2f}")
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 3 * 30
    assert counts[0] > counts[2] >= counts[3] == 0
    expect(page.locator(".result").first).to_contain_text("No tag reaches the minimum score")


def test_labels_of_ones_own(browser: Browser, site: Site, images: list[Path]) -> None:
    page = Visit(browser, site.address).page
    page.locator("#labels").fill("a ball\n a kite \n\nÄpfel & <i>Birnen</i>")
    page.locator("#threshold").fill("0")
    upload(page, images[:1])
    assert set(page.locator(".name").all_inner_texts()) == {"a ball", "a kite", "Äpfel & <i>Birnen</i>"}
    expect(page.locator("#status")).to_contain_text("from 3 labels")
    page.locator("#own").click()
    assert len(page.locator("#labels").input_value().splitlines()) == 66
    page.locator("#again").click()
    expect(page.locator("#status")).to_contain_text("from 66 labels")


DRAWN = "canvas => canvas.width ? [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]" \
    ".filter((value, at) => at % 4 === 3 && value).length : 0"  # fmt: skip
"""Pixels of a canvas that show anything."""


def test_where_a_tag_fits_by_mouse_and_by_keyboard(browser: Browser, site: Site, images: list[Path]) -> None:
    page = Visit(browser, site.address).page
    page.locator("#threshold").fill("0")
    upload(page, images[:1])
    canvas, tag = page.locator("canvas"), page.locator(".tag").first
    assert canvas.evaluate(DRAWN) == 0
    tag.hover()
    page.wait_for_function(f"({DRAWN})(document.querySelector('canvas')) > 1000")
    page.mouse.move(0, 0)
    page.wait_for_function(f"({DRAWN})(document.querySelector('canvas')) === 0")
    page.locator("#copy").focus()
    page.keyboard.press("Tab")
    assert tag.evaluate("tag => tag === document.activeElement")
    page.wait_for_function(f"({DRAWN})(document.querySelector('canvas')) > 1000")
    page.keyboard.press("Enter")
    page.keyboard.press("Shift+Tab")
    assert tag.get_attribute("aria-pressed") == "true"
    assert canvas.evaluate(DRAWN) > 1000  # it stays


def test_copied_as_json(browser: Browser, site: Site, images: list[Path]) -> None:
    page = Visit(browser, site.address).page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    upload(page, images[:2])
    page.locator("#copy").click()
    expect(page.locator("#status")).to_have_text("Copied.")
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert [each["image"] for each in copied["results"]] == [path.name for path in images[:2]]
    assert all("heatmap" not in tag for each in copied["results"] for tag in each["tags"])


def test_what_goes_wrong_is_said(browser: Browser, site: Site, images: list[Path], tmp_path: Path) -> None:
    page = Visit(browser, site.address).page
    (tmp_path / "notes.jpg").write_text("not an image")
    upload(page, [images[0], tmp_path / "notes.jpg"])
    expect(page.locator(".result").nth(1)).to_contain_text("The file is not an image.")
    upload(page, [tmp_path / "notes.jpg"])
    expect(page.locator(".result")).to_contain_text("The file is not an image.")
    page.locator("#labels").fill("a\na")
    page.locator("#again").click()
    expect(page.locator("#problem")).to_contain_text("listed twice: a")
    assert page.locator(".result").count() == 0
    page.locator("#labels").fill("")
    page.locator("#files").set_input_files([str(images[0])] * 5)
    expect(page.locator("#problem")).to_contain_text("found 5, expected at most 4")
    page.route("**/v1/tag", lambda route: route.abort())
    page.locator("#again").click()
    expect(page.locator("#problem")).to_contain_text("does not answer")


def test_a_key_is_asked_for(browser: Browser, config: ServeConfig, images: list[Path], tmp_path: Path) -> None:
    key = add_key(str(tmp_path / "keys.json"), "alice")
    site = Site(config, ApiKeys.load(str(tmp_path / "keys.json")))
    try:
        page = Visit(browser, site.address).page
        expect(page.locator("#problem")).to_contain_text("API key required")
        page.locator("#key").fill("wrong")
        page.locator("#key-use").click()
        expect(page.locator("#problem")).to_contain_text("unknown API key")
        page.locator("#key").fill(key)
        page.locator("#key-use").click()
        expect(page.locator("#model")).to_contain_text("66 labels")
        expect(page.locator("#key-field")).to_be_hidden()
        upload(page, images[:1])
    finally:
        site.stop()


def test_scores_that_are_no_probabilities(
    browser: Browser, config: ServeConfig, images: list[Path], tmp_path: Path
) -> None:
    site = Site(replace(config, checkpoint=str(untrained_checkpoint(tmp_path / "plain"))))
    try:
        page = Visit(browser, site.address).page
        expect(page.locator("#model")).to_contain_text("not calibrated")
        upload(page, images[:1])
        assert "%" not in page.locator(".value").first.inner_text()
    finally:
        site.stop()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(browser: Browser, site: Site, images: list[Path], scheme: str) -> None:
    page = Visit(browser, site.address, scheme=scheme).page
    assert serious_violations(page) == []
    upload(page, images)
    page.locator("#labels").fill("a\na")
    page.locator("#again").click()
    expect(page.locator("#problem")).to_be_visible()
    assert serious_violations(page) == []
    page.locator("#labels").fill("")
    upload(page, images)
    assert serious_violations(page) == []
    assert page.evaluate(MIN_CONTRAST) >= 4.5


@pytest.mark.parametrize("width", [1280, 768, 390, 320])
def test_the_page_never_scrolls_sideways(browser: Browser, site: Site, images: list[Path], width: int) -> None:
    page = Visit(browser, site.address, width=width).page
    page.locator("#labels").fill("x" * 180)
    page.locator("#threshold").fill("0")
    upload(page, images)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
