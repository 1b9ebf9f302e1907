"""Arrow files of Hugging Face's `datasets.save_to_disk`. `--images` is the folder of one split, with `state.json`.

hugging_face.py describes columns and labels. A worker that reads images reads its file from the start, because such a
file has no index; `save_to_disk` writes files of at most 500 MB.
"""

from __future__ import annotations

from sigrl_core.corpora import hugging_face
from sigrl_core.corpora.listing import Listing, require_folder
from sigrl_core.corpora.number_lists import LabelNumbers
from sigrl_core.errors import CorpusError
from sigrl_core.io import storage


def list_corpus(
    images: str,
    annotations: str | None = None,
    *,
    label_field: str | None = None,
    label_numbers: LabelNumbers | None = None,
    with_labels: bool = True,
) -> Listing:
    """Lists the rows of all files, in the order of the files' paths; see `hugging_face.list_corpus`.

    Raises:
        CorpusError: as there, or the folder contains several splits.
    """
    require_folder(images)
    if storage.exists(storage.join(images, "dataset_dict.json")):
        raise CorpusError(f"{images}: has several splits (dataset_dict.json); name the folder of one, {images}/train")
    return hugging_face.list_corpus(
        images,
        annotations,
        label_field=label_field,
        label_numbers=label_numbers,
        with_labels=with_labels,
        suffix=".arrow",
    )
