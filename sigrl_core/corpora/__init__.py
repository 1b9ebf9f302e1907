"""Where labelled pictures come from: one file per way to write labels down, one table.

A corpus is a function from (folder of pictures, annotation file or None) to a `Listing`. A new one is a new file and a
line in `CORPORA`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sigrl_core.corpora import (
    coco,
    csv_list,
    cub,
    files,
    folder,
    hugging_face,
    jsonl,
    nus_wide,
    open_images,
    parquet_list,
    shards,
    voc,
    webdataset,
    yolo,
)
from sigrl_core.corpora.listing import Listing, Row, label_states, told
from sigrl_core.errors import CorpusError

__all__ = ["CORPORA", "WALKED", "Corpus", "Listing", "Row", "get_corpus", "label_states", "told"]

Corpus = Callable[[str, str | None], Listing]

CORPORA: dict[str, Corpus] = {
    "folder": folder.list_corpus,
    "files": files.list_corpus,
    "shards": shards.list_corpus,
    "jsonl": jsonl.list_corpus,
    "csv": csv_list.list_corpus,
    "parquet": parquet_list.list_corpus,
    "webdataset": webdataset.list_corpus,
    "hugging_face": hugging_face.list_corpus,
    "coco": coco.list_corpus,
    "voc": voc.list_corpus,
    "yolo": yolo.list_corpus,
    "open_images": open_images.list_corpus,
    "nus_wide": nus_wide.list_tags_and_concepts,
    "nus_wide_81": nus_wide.list_concepts,
    "cub": cub.list_corpus,
    "cub_train": partial(cub.list_corpus, split="train"),
    "cub_test": partial(cub.list_corpus, split="test"),
}


WALKED = ("folder", "files")
"""Corpora whose uris are paths below the folder of pictures, whatever they look like."""


def get_corpus(name: str) -> Corpus:
    """The corpus of that name.

    Raises:
        CorpusError: there is none.
    """
    if name not in CORPORA:
        raise CorpusError(f"corpus {name!r} is not known; known are {', '.join(CORPORA)}")
    return CORPORA[name]
