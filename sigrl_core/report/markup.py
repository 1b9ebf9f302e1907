"""Small pieces of HTML that every section uses. All text from outside goes through `escape`."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable

DASH = "–"

escape = html.escape


def percent(value: float) -> str:
    return DASH if math.isnan(value) else f"{100 * value:.1f}"


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
