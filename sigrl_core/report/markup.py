"""The frame of a page and the small pieces of HTML in it. All text from outside goes through `escape`."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from importlib import resources
from string import Template
from typing import NamedTuple

DASH = "–"

escape = html.escape


class Section(NamedTuple):
    """One section of a page: where links lead to, its heading, HTML, and what the links call it, else its heading."""

    anchor: str
    heading: str
    content: str
    link: str = ""


def whole_page(title: str, lead: str, sections: Sequence[Section]) -> bytes:
    """A page in the style that all of them share (page.html).

    Args:
        title: as text.
        lead: what matters most in a sentence, HTML.
    """
    template = Template(resources.files("sigrl_core.report").joinpath("page.html").read_text(encoding="utf-8"))
    links = (f'<li><a href="#{anchor}">{link or heading}</a></li>' for anchor, heading, _, link in sections)
    written = (
        f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{heading}</h2>\n{content}\n</section>'
        for anchor, heading, content, _ in sections
    )
    page = template.substitute(title=escape(title), lead=lead, links="".join(links), sections="\n\n".join(written))
    return page.encode()


def percent(value: float) -> str:
    return DASH if math.isnan(value) else f"{100 * value:.1f}"


def shortened(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def marked(name: str, split: str) -> str:
    """A label, with a sign before it where training has not seen it."""
    sign = '<span class="diamond" title="unseen" aria-hidden="true">◆</span><span class="hidden">unseen:</span>&nbsp;'
    return f"{sign if split == 'unseen' else ''}{escape(name)}"


def note(text: str) -> str:
    return f'<p class="soft">{text}</p>'


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """Terms and what they mean, the latter HTML already."""
    return f"<dl>{''.join(f'<dt>{escape(term)}</dt><dd>{meaning}</dd>' for term, meaning in pairs)}</dl>"


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Signs, HTML already, and the words for them."""
    return f'<ul class="key">{"".join(f"<li>{sign}<span>{escape(words)}</span></li>" for sign, words in entries)}</ul>'


def scrollable(name: str, content: str, kind: str = "") -> str:
    """Something wide that scrolls in itself, by keyboard too, so that the page never does."""
    return f'<div class="scroll {kind}" tabindex="0" role="region" aria-label="{escape(name)}">{content}</div>'
