"""First of equal digests, first of near hashes: as the definitions have it, for any rows."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigrl_core.duplicates import MAX_DISTANCE, first_of_equals, first_of_near

pytestmark = pytest.mark.unit


def near_by_loop(hashes: list[int], distance: int, among: list[bool]) -> list[bool]:
    kept: list[int] = []
    answer = []
    for value, may in zip(hashes, among, strict=True):
        answer.append(may and all((value ^ other).bit_count() > distance for other in kept))
        if answer[-1]:
            kept.append(value)
    return answer


def around(rng: np.random.Generator, centres: np.ndarray, count: int, flips: int) -> np.ndarray:
    """uint64 [count]: centres drawn at random with up to `flips` bits changed."""
    hashes = rng.choice(centres, count)
    for _ in range(flips):
        hashes ^= np.uint64(1) << rng.integers(0, 64, count, dtype=np.uint64)
    return hashes


DIGESTS = [*(hashlib.sha256(bytes([n])).digest() for n in range(6)), bytes(31) + b"a", bytes(32)]


@settings(deadline=None)
@given(st.lists(st.sampled_from(DIGESTS)))
def test_first_of_equals(digests: list[bytes]) -> None:
    expected = [digest not in digests[:row] for row, digest in enumerate(digests)]
    assert first_of_equals(b"".join(digests)).tolist() == expected
    assert first_of_equals(memoryview(b"".join(digests))).tolist() == expected


def test_digests_are_whole() -> None:
    with pytest.raises(ValueError, match="33 bytes of digests; expected a multiple of 32"):
        first_of_equals(bytes(33))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, MAX_DISTANCE), st.integers(0, 150), st.integers(0, 16), st.booleans())
def test_first_of_near_is_greedy(seed: int, distance: int, rows: int, flips: int, some: bool) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, rng.integers(1, 8), dtype=np.uint64)
    hashes_N = around(rng, centres, rows, flips)
    among_N = rng.random(rows) < 0.7 if some else np.ones(rows, bool)
    expected = near_by_loop(hashes_N.tolist(), distance, among_N.tolist())
    assert first_of_near(hashes_N, distance, among_N if some else None).tolist() == expected


@pytest.mark.parametrize("distance", [0, 1, 3, 4, 10, 15])
def test_first_of_near_over_many_blocks(distance: int) -> None:
    rng = np.random.default_rng(distance)
    centres = rng.integers(0, 2**64, 300, dtype=np.uint64)
    hashes_N = np.concatenate([around(rng, centres, 1500, 5), rng.integers(0, 2**64, 500, dtype=np.uint64)])
    rng.shuffle(hashes_N)
    expected = near_by_loop(hashes_N.tolist(), distance, [True] * len(hashes_N))
    assert first_of_near(hashes_N, distance).tolist() == expected


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.sets(st.integers(0, 63), min_size=1, max_size=16))
def test_the_distance_itself_is_near(value: int, bits: set[int]) -> None:
    other = value ^ sum(1 << bit for bit in bits)
    hashes = np.array([value, other], np.uint64)
    if len(bits) <= MAX_DISTANCE:
        assert first_of_near(hashes, len(bits)).tolist() == [True, False]
    assert first_of_near(hashes, len(bits) - 1).tolist() == [True, True]


def test_distances_are_checked() -> None:
    for distance in (-1, MAX_DISTANCE + 1):
        with pytest.raises(ValueError, match="expected 0 to 15 bits"):
            first_of_near(np.zeros(1, np.uint64), distance)
