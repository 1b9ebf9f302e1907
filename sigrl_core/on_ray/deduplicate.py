"""Removes images that occur more than once from the shards of all partitions, and unites the labels of equal images.

Rows of one image, by uri or by content, describe the same picture. The first row in listing order stays. Its label
states follow from the evidence of all rows (`data.label_states`): what a row lists wins over what another one does not
list. A label that is listed as present and as absent is unknown, and such conflicts are reported with both rows.
Near duplicates are other pictures, so their labels are not united.

Evidence is read from the listing again, so that any earlier result can be corrected: after `--retry-failed`, an image
may have other duplicates than before.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sigrl_core.config import PreprocessConfig
from sigrl_core.corpora.listing import ListedImage, apply_label_policy, label_evidence
from sigrl_core.corpora.listing_file import read_partition
from sigrl_core.data.duplicates import find_repeated, keep_dissimilar
from sigrl_core.data.label_states import (
    LISTED_ABSENT,
    LISTED_PRESENT,
    count_states,
    decode_states,
    encode_states,
    states_of,
)
from sigrl_core.data.shards import SHARD_SCHEMA, assign_split
from sigrl_core.io import storage
from sigrl_core.io.checksums import sha256_of
from sigrl_core.io.parquet import open_parquet_bytes, to_parquet
from sigrl_core.io.resumable_job import Partition, ResumableJob
from sigrl_core.labels.vocabulary import Vocabulary

LISTING = "listing.parquet"
_KINDS = ("", "exact", "near")
"""Kinds of duplicates, of which the first one is none."""


class Deduplicated(NamedTuple):
    """One partition after deduplication.

    Attributes:
        shard: its entry in the manifest; None if no rows are left.
        duplicates, quarantine: the rows that are not in the shard.
        conflicts: rows of CONFLICTS_SCHEMA, of the images in the shard.
        num_united: number of images in the shard whose labels are not those of their first row alone.
    """

    shard: dict[str, Any] | None
    duplicates: list[dict[str, str]]
    quarantine: list[dict[str, str]]
    conflicts: list[dict[str, Any]]
    num_united: int


class _Row(NamedTuple):
    """A row of the listing whose image is usable, and its number in the listing."""

    number: int
    image: ListedImage


class _Repeats(NamedTuple):
    """Rows whose image is that of an earlier row in the shards, among the usable rows of all partitions.

    Attributes:
        starts: first usable row of each partition, and the number of all.
        kinds: uint8 [N], positions in `_KINDS`.
        rows, firsts: int64 [R]: rows, and the earlier row of each; ordered by the earlier row.
    """

    starts: np.ndarray
    kinds: np.ndarray
    rows: np.ndarray
    firsts: np.ndarray


def deduplicate(
    config: PreprocessConfig, job: ResumableJob, vocabulary: Vocabulary, parts: Sequence[Partition]
) -> list[Deduplicated | None]:
    """Moves the shards of all partitions to their final paths, without images that equal an image of an earlier row.

    Memory holds some 50 bytes for each image, and labels only of images whose equal is in another partition.

    Returns:
        The result of each partition. None means that the partition must be processed again: an image that was removed
        as a duplicate in an earlier run is no longer one.
    """
    repeats = _find_repeats(config, job, parts)
    elsewhere = _read_elsewhere(job, parts, repeats)
    with ThreadPoolExecutor(8) as pool:  # an object store copies several files at a time
        run = partial(_deduplicate_partition, config, job, vocabulary, repeats, elsewhere)
        return list(pool.map(run, range(len(parts)), parts))


def shard_states(config: PreprocessConfig, evidence_C: np.ndarray, sha256: str) -> bytes:
    """Returns the label states of an image for its shard row: by its evidence, its split and the label policy."""
    states_C = states_of(evidence_C)
    if assign_split(sha256, config.seed, config.validation_fraction, config.test_fraction) == "train":
        states_C = apply_label_policy(states_C, config.label_policy, sha256, config.seed)
    return encode_states(states_C)


def shard_entry(data: bytes, table: pa.Table, vocabulary: Vocabulary) -> dict[str, Any]:
    """Returns the entry of a shard in the manifest, except its name."""
    states_NC = decode_states(table["label_states"], len(vocabulary))
    short_sides = Counter(map(str, np.minimum(table["width"].to_numpy(), table["height"].to_numpy()).tolist()))
    return {
        "rows": table.num_rows,
        "sha256": sha256_of(data),
        "label_counts": count_states(states_NC, vocabulary),
        "short_sides": dict(short_sides),
    }


def staged_shard(job: ResumableJob, part: Partition) -> str:
    """Returns the path of a partition's shard until its duplicates are known.

    It differs from the final path, because a worker that outlives its driver may write the shard again.
    """
    return job.path("work", "shards", part.name + ".parquet")


def _find_repeats(config: PreprocessConfig, job: ResumableJob, parts: Sequence[Partition]) -> _Repeats:
    counts, digests, hashes = [0], bytearray(), []
    for record in job.records(parts):  # the records are read twice, so that they are not all in memory
        counts.append(len(record["sha256"]))
        digests += bytes.fromhex("".join(record["sha256"]))
        if config.near_duplicates is not None:
            hashes.append(np.array(record["perceptual_hash"], np.uint64))
    rows, firsts = find_repeated(digests)
    starts = np.cumsum(counts)
    kinds = np.zeros(starts[-1], np.uint8)
    kinds[rows] = _KINDS.index("exact")
    if config.near_duplicates is not None:
        is_first = kinds == 0
        is_near = is_first & ~keep_dissimilar(np.concatenate(hashes), config.near_duplicates, is_first)
        kinds[is_near] = _KINDS.index("near")
    kept = kinds[firsts] == 0
    rows, firsts = rows[kept], firsts[kept]
    order = np.argsort(firsts, kind="stable")
    return _Repeats(starts, kinds, rows[order], firsts[order])


def _part_of(repeats: _Repeats, rows: np.ndarray) -> np.ndarray:
    return np.searchsorted(repeats.starts, rows, side="right") - 1


def _read_elsewhere(job: ResumableJob, parts: Sequence[Partition], repeats: _Repeats) -> dict[int, list[_Row]]:
    """Reads the annotated rows whose earlier row is in another partition; returns them by that row, in order."""
    elsewhere: dict[int, list[_Row]] = defaultdict(list)
    places = _part_of(repeats, repeats.rows)
    pairs = np.flatnonzero(places != _part_of(repeats, repeats.firsts))
    pairs = pairs[np.argsort(places[pairs], kind="stable")]
    for index, group in groupby(pairs.tolist(), key=places.tolist().__getitem__):
        usable = _usable_rows(job, parts[index], job.record(parts[index]))
        for pair in group:
            row = usable[int(repeats.rows[pair] - repeats.starts[index])]
            if row.image.labels is not None or row.image.negatives is not None:
                elsewhere[int(repeats.firsts[pair])].append(row)
    return elsewhere


def _usable_rows(job: ResumableJob, part: Partition, record: dict[str, Any]) -> list[_Row]:
    """Returns the rows of the listing that the lists of a commit record describe."""
    listed = read_partition(job.path(LISTING), part)
    positions = record.get("rows")
    if positions is None:  # version 0.1.0
        lost = Counter(row["uri"] for row in record["quarantine"])
        positions = []
        for position, image in enumerate(listed):
            lost[image.uri] -= 1
            if lost[image.uri] < 0:
                positions.append(position)
    return [_Row(part.start + position, listed[position]) for position in positions]


def _deduplicate_partition(
    config: PreprocessConfig,
    job: ResumableJob,
    vocabulary: Vocabulary,
    repeats: _Repeats,
    elsewhere: dict[int, list[_Row]],
    index: int,
    part: Partition,
) -> Deduplicated | None:
    """Moves the shard of a partition to its final path, without duplicates; returns None as `deduplicate`.

    An earlier run may have moved the shard, with more or fewer images removed, or other labels united.
    """
    record = job.record(part)
    start, stop = repeats.starts[index : index + 2]
    kinds = repeats.kinds[start:stop]
    rows = zip(record["uris"], record["sha256"], kinds, strict=True)
    duplicates = [{"uri": uri, "sha256": sha256, "kind": _KINDS[kind]} for uri, sha256, kind in rows if kind]
    staged, final = staged_shard(job, part), job.path("shards", part.name + ".parquet")
    if len(duplicates) == len(kinds):
        storage.remove(final)
        return Deduplicated(None, duplicates, record["quarantine"], [], 0)
    is_staged = storage.exists(staged)
    if not is_staged and not storage.exists(final):
        return None
    entry = {"name": part.name + ".parquet", **record["shard"]}
    low, high = np.searchsorted(repeats.firsts, [start, stop])
    if is_staged and not duplicates and low == high:
        storage.move(staged, final)
        return Deduplicated(entry, [], record["quarantine"], [], 0)

    groups = _group_rows(_usable_rows(job, part, record), repeats, elsewhere, start, slice(low, high))
    kept = [_unite(config, vocabulary, record["sha256"][position], group) for position, group in groups.items()]
    conflicts = [row for image in kept for row in image.conflicts]
    result = Deduplicated(entry, duplicates, record["quarantine"], conflicts, sum(image.is_united for image in kept))
    expected = [(image.sha256, image.states) for image in kept]
    if not is_staged and not duplicates and low == high and _read_states(final) == expected:
        return result  # the earlier run moved it unchanged
    data = storage.read_bytes(staged if is_staged else final)
    table = open_parquet_bytes(data).read(use_threads=False)
    wanted = dict(expected)
    mask = [wanted.pop(sha256, None) is not None for sha256 in table["sha256"].to_pylist()]  # the first of each
    if wanted:
        return None
    if not all(mask):
        table = table.filter(pa.array(mask))
    states = [states for _, states in expected]
    if table["label_states"].to_pylist() != states:
        position = SHARD_SCHEMA.get_field_index("label_states")
        table = table.set_column(position, SHARD_SCHEMA.field(position), pa.array(states, pa.binary()))
    data = to_parquet(table)
    storage.write_bytes(final, data)
    return result._replace(shard={**entry, **shard_entry(data, table, vocabulary)})


def _group_rows(
    usable: Sequence[_Row], repeats: _Repeats, elsewhere: dict[int, list[_Row]], start: int, repeated: slice
) -> dict[int, list[_Row]]:
    """Returns, for each image that stays, its position among the usable rows and all its rows, the first one first."""
    kinds = repeats.kinds[start : start + len(usable)]
    groups = {position: [usable[position]] for position in np.flatnonzero(kinds == 0).tolist()}
    for row, first in zip(repeats.rows[repeated], repeats.firsts[repeated], strict=True):
        if row < start + len(usable):
            groups[int(first - start)].append(usable[int(row - start)])
    for position, group in groups.items():
        group += elsewhere.get(int(start) + position, [])
    return groups


class _KeptImage(NamedTuple):
    """An image that stays in its shard.

    Attributes:
        states: its label states, as the shard stores them.
        is_united: whether other rows changed what its first row says.
        conflicts: rows of CONFLICTS_SCHEMA.
    """

    sha256: str
    states: bytes
    is_united: bool
    conflicts: list[dict[str, Any]]


def _unite(config: PreprocessConfig, vocabulary: Vocabulary, sha256: str, group: Sequence[_Row]) -> _KeptImage:
    """Unites the labels of all rows of an image."""
    evidence_RC = label_evidence([row.image for row in group], vocabulary, config.annotation_scope)
    united_C = np.bitwise_or.reduce(evidence_RC, axis=0)
    both = LISTED_PRESENT | LISTED_ABSENT
    conflicts = []
    for c in np.flatnonzero(united_C & both == both):
        bits = (LISTED_PRESENT, LISTED_ABSENT)
        present, absent = (group[int((evidence_RC[:, c] & bit > 0).argmax())] for bit in bits)
        conflicts.append(
            {
                "uri": group[0].image.uri,
                "sha256": sha256,
                "label": vocabulary.names[c],
                "present_uri": present.image.uri,
                "present_row": present.number,
                "absent_uri": absent.image.uri,
                "absent_row": absent.number,
            }
        )
    is_united = bool((states_of(united_C) != states_of(evidence_RC[0])).any())
    return _KeptImage(sha256, shard_states(config, united_C, sha256), is_united, conflicts)


def _read_states(shard: str) -> list[tuple[str, bytes]]:
    with storage.open_input(shard) as file:
        table = pq.ParquetFile(file).read(["sha256", "label_states"])
    return list(zip(table["sha256"].to_pylist(), table["label_states"].to_pylist(), strict=True))
