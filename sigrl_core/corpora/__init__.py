"""Corpora of labelled images: one module per annotation format.

A corpus is a function from (folder of images, annotation file or None) to a `Listing`. `plugins.CORPORA` names them;
`register_corpus` adds one. It may have further parameters, which `open_corpus` passes: `label_separator`,
`label_field` and `label_numbers` are flags of preprocess.py, and `with_labels` is False where labels are not needed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from sigrl_core.corpora.listing import ListedImage, Listing, apply_label_policy, label_states
from sigrl_core.errors import CorpusError
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
    "open_corpus",
]

Corpus = Callable[..., Listing]

PATH_CORPORA = ("folder", "files")
"""Corpora whose uris are always paths below the folder of images, even if they look like locations."""


def get_corpus(name: str) -> Corpus:
    """Returns the corpus of that name.

    Raises:
        CorpusError: there is none.
    """
    return CORPORA[name]


def open_corpus(
    name: str, images: str, annotations: str | None = None, *, with_labels: bool = True, **options: str | None
) -> Listing:
    """Lists a corpus.

    Args:
        name: name of the corpus.
        images: folder of images.
        annotations: annotation file or folder.
        with_labels: False lists the images alone, without an error for labels that cannot be read.
        options: further parameters of the corpus; None leaves one out.

    Raises:
        CorpusError: errors of the corpus, or it has no such parameter.
    """
    corpus = get_corpus(name)
    parameters = inspect.signature(corpus).parameters
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in parameters:
            raise CorpusError(f"corpus {name}: has no --{key.replace('_', '-')}; leave it out")
    if not with_labels and "with_labels" in parameters:
        return corpus(images, annotations, with_labels=False)
    return corpus(images, annotations, **given)
