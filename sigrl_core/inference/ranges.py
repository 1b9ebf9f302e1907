"""Plans a tagging job: the keys to tag, and the key ranges that they are cut into."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from sigrl_core.config import TagConfig
from sigrl_core.corpora import open_corpus
from sigrl_core.corpora.image_files import listing_key
from sigrl_core.corpora.listing import ListedImage, Listing
from sigrl_core.inference.tag_files import SIDECAR
from sigrl_core.io.checksums import sha256_of
from sigrl_core.io.key_ranges import cut_ranges, range_name
from sigrl_core.io.resumable_job import Partition


@dataclass(frozen=True)
class KeyRange(Partition):
    """One range of keys.

    Attributes:
        key: first key of the range; empty for the first range.
        previous_range: first key of the range that held these keys in the previous run; None if there was none.
        listing: hash of the range's rows as listed.
        examples: whether the commit record includes a few images for the page.
    """

    key: str
    previous_range: str | None
    listing: str
    examples: bool

    @property
    def name(self) -> str:
        return range_name(self.key)

    def file_path(self, folder: str) -> str:
        """Returns the path of the range's file in a sub-folder, `tags` or `jsonl`, relative to the output folder."""
        return f"{folder}/{self.name}.{'parquet' if folder == 'tags' else folder}"


def list_keys(config: TagConfig) -> Listing:
    """Lists all keys except sidecars that tag.py wrote; raises CorpusError if there are none."""
    listing = open_corpus(config.corpus, config.images, with_labels=False)
    return Listing(_drop_sidecars(listing.images)) if config.format == "sidecar" else listing


def _drop_sidecars(rows: Iterable[ListedImage]) -> Iterator[ListedImage]:
    """Drops KEY.json if KEY is listed too. In key order, KEY comes before KEY.json, but not always directly."""
    prefixes: list[str] = []  # earlier keys that the current key starts with
    for row in rows:
        while prefixes and not row.uri.startswith(prefixes[-1]):
            prefixes.pop()
        if any(row.uri == key + SIDECAR for key in prefixes):
            continue
        prefixes.append(row.uri)
        yield row


def plan_ranges(
    config: TagConfig,
    rows: Iterable[ListedImage],
    previous_ranges: dict[str, str],
    on_range: Callable[[KeyRange], None],
) -> Iterator[list[ListedImage]]:
    """Cuts a listing into key ranges and yields the rows of each.

    Ranges that provide example images become rarer with their index: number 1, 2, 4, 8 and so on.

    Args:
        previous_ranges: first key of each range of the previous run, in order -> first key of the range whose files
            hold its rows.
        on_range: called with each range before its rows are yielded.
    """
    stop = 0
    for index, (key_range, range_rows) in enumerate(
        cut_ranges(rows, listing_key, list(previous_ranges), config.rows_per_shard)
    ):
        payload = json.dumps([[row.uri, row.size, row.offset, row.etag] for row in range_rows])
        previous = key_range.previous_range
        on_range(
            KeyRange(
                index=index,
                start=stop,
                stop=(stop := stop + len(range_rows)),
                key=key_range.start,
                previous_range=None if previous is None else previous_ranges[previous],
                listing=sha256_of(payload.encode()),
                examples=(index + 1).bit_count() == 1,
            )
        )
        yield range_rows


def staged_ranges(ranges: Sequence[KeyRange]) -> set[str]:
    """Returns the names of the ranges that replace a range of the previous run that was cut.

    Their files are staged until all of them are complete, because the files of the cut range are still read.
    """
    num_successors = Counter(each.previous_range for each in ranges)
    return {each.name for each in ranges if each.previous_range is not None and num_successors[each.previous_range] > 1}
