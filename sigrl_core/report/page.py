"""Renders pages. Each is one file of HTML, CSS and inline SVG without scripts, and makes no requests.

Python computes the data of a page and its template holds the HTML. Jinja2 escapes all text from outside.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **data: Any) -> bytes:
    """Returns a page as UTF-8.

    Args:
        template: name of a file of this package.
        data: the variables of the template.
    """
    return environment().get_template(template).render(data).encode()


@cache
def environment() -> Environment:
    """Returns the templates of this package, with the functions below as filters."""
    templates = Environment(
        loader=PackageLoader("sigrl_core.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(counted=counted, grouped=grouped, percent=percent, shortened=shortened)
    return templates


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def grouped(number: float) -> str:
    return f"{number:,}"


def percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def shortened(text: str, max_letters: int) -> str:
    return text if len(text) <= max_letters else text[: max_letters - 1] + "…"
