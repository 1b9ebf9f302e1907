"""Charts: the SVG is safe, the same for the same input, and independent of what else uses matplotlib."""

import re
from concurrent.futures import ThreadPoolExecutor

import matplotlib
import pytest
from markupsafe import Markup

from sigrl_core.report.charts import Line, histogram, line_chart, parallel_coordinates

pytestmark = pytest.mark.unit

STRANGE = ['<script>alert("1")</script>', "$\\frac{1}{", "日本語", "a\nb", "שלום", "\x00"]


def charts(names: list[str]) -> list[Markup]:
    lines = [Line(name, [(1.0, 0.25 * i), (2.0, 0.5)]) for i, name in enumerate(names)]
    rows = [(name, [0.0, None, 1.0], i == 0) for i, name in enumerate(names)]
    return [
        line_chart(names[0], lines, x_title="epoch", y_title="loss"),
        parallel_coordinates(names[0], [(name, [(0.5, name)]) for name in names[:3]], rows),
        histogram(names[0], [3, 0, 2], [0.0, 1.0, 2.0, 3.0], x_title="pixels", x_ticks=[(0.0, "0")]),
    ]


def test_the_same_input_gives_the_same_bytes_in_threads_too() -> None:
    expected = charts(["a", "b"])
    with ThreadPoolExecutor(4) as pool:
        assert all(drawn == expected for drawn in pool.map(lambda _: charts(["a", "b"]), range(8)))


def test_settings_of_matplotlib_stay_as_they_were() -> None:
    before = dict(matplotlib.rcParams)
    charts(["a"])
    assert dict(matplotlib.rcParams) == before


def test_names_are_texts_in_any_script() -> None:
    for chart in charts(STRANGE):
        assert "<script" not in chart
        assert "&lt;script&gt;" in chart
    lines, coordinates, _ = charts(STRANGE)
    for name in ("$\\frac{1}{", "日本語", "שלום"):
        assert f"<title>{name}</title>" in lines
    assert re.search(r"<text [^>]*>日本語</text>", coordinates)


def test_charts_have_no_ids_and_no_styles_of_their_own() -> None:
    for chart in charts(["a", "b"]):
        assert not re.search(r"\sid=|<style|url\(|href|xmlns|fill|stroke|font", chart)
        assert re.match(r'<svg viewBox="0 0 \d+ \d+" role="img" aria-label="a', chart)


def test_a_line_is_interrupted_where_a_row_has_no_value() -> None:
    _, coordinates, _ = charts(["a", "b", "c"])
    (path,) = re.findall(r'<g class="s s0"><title>a</title><path d="([^"]*)"', coordinates)
    assert (path.count("M"), path.count("L")) == (2, 0)
