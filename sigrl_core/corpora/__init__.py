"""Corpora of labelled images: one module per annotation format.

A corpus is a function from (folder of images, annotation file or None) to a `Listing`. `plugins.CORPORA` names them;
`register_corpus` adds one.
"""

from __future__ import annotations

from collections.abc import Callable

from sigrl_core.corpora.listing import ListedImage, Listing, apply_label_policy, label_states
from sigrl_core.plugins import CORPORA

__all__ = [
    "CORPORA",
    "PATH_CORPORA",
    "Corpus",
    "ListedImage",
    "Listing",
    "apply_label_policy",
    "get_corpus",
    "label_states",
]

Corpus = Callable[[str, str | None], Listing]

PATH_CORPORA = ("folder", "files")
"""Corpora whose uris are always paths below the folder of images, even if they look like locations."""


def get_corpus(name: str) -> Corpus:
    """Returns the corpus of that name.

    Raises:
        CorpusError: there is none.
    """
    return CORPORA[name]
