"""Decides whether the text files of a WebDataset contain labels, one per line, or captions.

Text beside a JSON with the key `caption` is a caption, as in the files of img2dataset. Otherwise the first 1000 samples
with text decide. Labels have at most three words in most lines and occur again; captions are longer and do not. In
fewer than 20 lines only the number of words counts. Everything else is refused, with the flag that decides.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sigrl_core.corpora.listing import ListedImage
from sigrl_core.corpora.number_lists import take_sample
from sigrl_core.errors import CorpusError

_MIN_LINES = 20  # of which some should be equal if they are labels
_MAX_LABEL_WORDS = 3


class Sample(NamedTuple):
    """One image of a WebDataset with what its files contain.

    Attributes:
        image: the image without labels.
        cell: the labels of the sample: a text, a class number, a list of these, one value per class; None if unknown.
        negatives: absent labels in the same form.
        texts: lines that are the labels, or captions.
        has_caption: whether the sample has a caption that is not read.
        where: place of the labels, for messages.
    """

    image: ListedImage
    cell: Any = None
    negatives: Any = None
    texts: list[str] | None = None
    has_caption: bool = False
    where: str = ""


def select_texts(samples: Iterator[Sample], label_field: str | None, where: str) -> Iterator[Sample]:
    """Yields the samples, with their lines as labels if these are no captions; holds at most 1000 samples in memory.

    Args:
        label_field: with `txt`, lines are labels.
        where: the folder, for messages.

    Raises:
        CorpusError: the lines may be labels or captions.
    """
    are_labels = True if label_field == "txt" else None
    num_captions, example = 0, ""
    for sample in samples:
        group = [sample]
        if are_labels is None and sample.texts is not None:
            group = take_sample(sample, samples, lambda each: len(str(each.texts)))
            are_labels = _are_labels([each.texts for each in group if each.texts is not None], where)
        for each in group:
            is_unread = each.has_caption or (each.texts is not None and not are_labels)
            if is_unread and each.cell is None:
                num_captions += 1
                example = example or each.image.uri
            yield each._replace(cell=each.texts) if each.texts is not None and are_labels else each
    if num_captions:
        print(
            f"{where}: {num_captions} samples have a caption and no labels, for example {example}; captions are not "
            "read as labels; if they are labels, add --label-field txt (or caption, the key of the JSON)",
            file=sys.stderr,
        )


def _are_labels(texts: Sequence[list[str]], where: str) -> bool:
    lines = [line for each in texts for line in each]
    if not lines:
        raise CorpusError(
            f"{where}: the first {len(texts)} .txt files are empty; add --label-field txt if they list labels, or "
            "--label-field labels to read only that key of the JSON"
        )
    are_short = statistics.median(len(line.split()) for line in lines) <= _MAX_LABEL_WORDS
    occur_again = len(set(lines)) <= len(lines) / 2
    if len(lines) >= _MIN_LINES and are_short != occur_again:
        raise CorpusError(
            f"{where}: the .txt files may be labels or captions ({len(set(lines))} different lines of {len(lines)}, "
            f"for example {lines[0][:80]!r}); add --label-field txt if they are labels, or --label-field labels to "
            "read only that key of the JSON"
        )
    return are_short
