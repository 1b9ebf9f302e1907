"""Exact and near duplicates, compared with the definitions for any rows."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigrl_core.data.duplicates import MAX_DISTANCE, find_repeated, keep_dissimilar

pytestmark = pytest.mark.unit


def near_by_loop(hashes: list[int], distance: int, among: list[bool]) -> list[bool]:
    kept: list[int] = []
    mask = []
    for value, allowed in zip(hashes, among, strict=True):
        mask.append(allowed and all((value ^ other).bit_count() > distance for other in kept))
        if mask[-1]:
            kept.append(value)
    return mask


def around(rng: np.random.Generator, centres: np.ndarray, count: int, flips: int) -> np.ndarray:
    """Returns uint64 [count]: random centres with up to `flips` bits changed."""
    hashes = rng.choice(centres, count)
    for _ in range(flips):
        hashes ^= np.uint64(1) << rng.integers(0, 64, count, dtype=np.uint64)
    return hashes


DIGESTS = [*(hashlib.sha256(bytes([n])).digest() for n in range(6)), bytes(31) + b"a", bytes(32)]


@settings(deadline=None)
@given(st.lists(st.sampled_from(DIGESTS)))
def test_find_repeated(digests: list[bytes]) -> None:
    expected = [(row, digests.index(digest)) for row, digest in enumerate(digests) if digest in digests[:row]]
    for form in (bytes, memoryview):
        rows, firsts = find_repeated(form(b"".join(digests)))
        assert list(zip(rows.tolist(), firsts.tolist(), strict=True)) == expected


def test_incomplete_digests_are_refused() -> None:
    with pytest.raises(ValueError, match="33 bytes of digests; expected a multiple of 32"):
        find_repeated(bytes(33))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, MAX_DISTANCE), st.integers(0, 150), st.integers(0, 16), st.booleans())
def test_keep_dissimilar_is_greedy(seed: int, distance: int, rows: int, flips: int, some: bool) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, rng.integers(1, 8), dtype=np.uint64)
    hashes_N = around(rng, centres, rows, flips)
    among_N = rng.random(rows) < 0.7 if some else np.ones(rows, bool)
    expected = near_by_loop(hashes_N.tolist(), distance, among_N.tolist())
    assert keep_dissimilar(hashes_N, distance, among_N if some else None).tolist() == expected


@pytest.mark.parametrize("distance", [0, 1, 3, 4, 10, 15])
def test_keep_dissimilar_over_many_blocks(distance: int) -> None:
    rng = np.random.default_rng(distance)
    centres = rng.integers(0, 2**64, 300, dtype=np.uint64)
    hashes_N = np.concatenate([around(rng, centres, 1500, 5), rng.integers(0, 2**64, 500, dtype=np.uint64)])
    rng.shuffle(hashes_N)
    expected = near_by_loop(hashes_N.tolist(), distance, [True] * len(hashes_N))
    assert keep_dissimilar(hashes_N, distance).tolist() == expected


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.sets(st.integers(0, 63), min_size=1, max_size=16))
def test_the_distance_itself_is_near(value: int, bits: set[int]) -> None:
    other = value ^ sum(1 << bit for bit in bits)
    hashes = np.array([value, other], np.uint64)
    if len(bits) <= MAX_DISTANCE:
        assert keep_dissimilar(hashes, len(bits)).tolist() == [True, False]
    assert keep_dissimilar(hashes, len(bits) - 1).tolist() == [True, True]


def test_distances_are_checked() -> None:
    for distance in (-1, MAX_DISTANCE + 1):
        with pytest.raises(ValueError, match="expected 0 to 15 bits"):
            keep_dissimilar(np.zeros(1, np.uint64), distance)
