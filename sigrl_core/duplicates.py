"""Which rows of a listing say again what an earlier one said: equal bytes, or perceptual hashes that hardly differ."""

from __future__ import annotations

from itertools import combinations

import numpy as np

DIGEST_BYTES = 32
MAX_DISTANCE = 15
"""Bits. Ten is already much for perceptual hashes of 64, unrelated ones differ by about 32."""

_BAND_BITS = 16
_BANDS = 64 // _BAND_BITS
_BLOCK = 512  # rows compared each with each


def first_of_equals(digests: bytes | bytearray | memoryview) -> np.ndarray:
    """bool [N]: True where no earlier row has the same 32 bytes.

    Args:
        digests: N sha256 digests, one after the other. 10 million take about 10 s and 0.5 GB to sort.

    Raises:
        ValueError: not a whole number of digests.
    """
    flat = np.frombuffer(digests, np.uint8)
    if len(flat) % DIGEST_BYTES:
        raise ValueError(f"{len(flat)} bytes of digests; expected a multiple of {DIGEST_BYTES}")
    words_N4 = flat.view(np.uint64).reshape(-1, DIGEST_BYTES // 8)
    order_N = np.lexsort(words_N4.T)  # stable: among equals the earliest comes first
    sorted_N4 = words_N4[order_N]
    starts_N = np.ones(len(order_N), bool)
    np.any(sorted_N4[1:] != sorted_N4[:-1], axis=1, out=starts_N[1:])
    first_N = np.empty_like(starts_N)
    first_N[order_N] = starts_N
    return first_N


def first_of_near(hashes_N: np.ndarray, distance: int, among_N: np.ndarray | None = None) -> np.ndarray:
    """bool [N]: rows kept when, in order, each is dropped that is near one kept before it.

    Exactly so, whatever the hashes are. Time grows with rows kept times rows that share about 16 bits with one: 100,000
    unrelated rows take 0.2 s at a distance of 3 and 3 s at 10, a million 3 s at 3 and 20 s at 6.

    Args:
        hashes_N: uint64, perceptual hashes.
        distance: bits in which two hashes may differ to count as near, at most `MAX_DISTANCE`.
        among_N: bool, False for rows that are out from the start and drop nobody; None for all True.

    Raises:
        ValueError: `distance` out of range.
    """
    if not 0 <= distance <= MAX_DISTANCE:
        raise ValueError(f"distance = {distance}; expected 0 to {MAX_DISTANCE} bits")
    rows = np.arange(len(hashes_N)) if among_N is None else np.flatnonzero(among_N)
    # Of equal hashes only the first can be kept, as what drops it drops the others too: crowds of them cost nothing.
    _, firsts = np.unique(hashes_N[rows], return_index=True)
    rows = rows[np.sort(firsts)]
    kept_N = np.zeros(len(hashes_N), bool)
    kept_N[rows] = _first_of_near_distinct(hashes_N[rows].astype(np.uint64), distance)
    return kept_N


def _first_of_near_distinct(hashes_N: np.ndarray, distance: int) -> np.ndarray:
    """A sieve: rows are gone through in blocks, and what a block keeps strikes out everything near it."""
    bands = _bands(hashes_N, distance)
    struck_N = np.zeros(len(hashes_N), bool)
    kept_N = np.zeros(len(hashes_N), bool)
    for start in range(0, len(hashes_N), _BLOCK):
        rows = start + np.flatnonzero(~struck_N[start : start + _BLOCK])
        rows = rows[_first_of_near_pairwise(hashes_N[rows], distance)]
        kept_N[rows] = True
        for band in bands:
            found, asking = band.sharing(hashes_N[rows])
            near = np.bitwise_count(hashes_N[found] ^ hashes_N[rows[asking]]) <= distance
            struck_N[found[near]] = True  # earlier rows and the row itself too, which are through
    return kept_N


def _first_of_near_pairwise(hashes_K: np.ndarray, distance: int) -> np.ndarray:
    near_KK = np.tril(np.bitwise_count(hashes_K[:, None] ^ hashes_K) <= distance, -1)
    kept_K = np.ones(len(hashes_K), bool)
    for row in np.flatnonzero(near_KK.any(axis=1)):
        kept_K[row] = not (near_KK[row] & kept_K).any()
    return kept_K


class _Band:
    """Rows by sixteen bits of their hash, to find those that differ from a hash in at most `radius` of these."""

    def __init__(self, hashes_N: np.ndarray, shift: int, radius: int) -> None:
        self.shift = np.uint64(shift)
        values_N = self._values(hashes_N)
        self.rows_N = np.argsort(values_N, kind="stable")
        self.starts = np.searchsorted(values_N[self.rows_N], np.arange(2**_BAND_BITS + 1))
        flips = [bits for number in range(radius + 1) for bits in combinations(range(_BAND_BITS), number)]
        self.flips_F = np.array([sum(1 << bit for bit in bits) for bits in flips], np.uint16)

    def sharing(self, hashes_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of (row found, place in `hashes_K` of the hash it was found for)."""
        values = (self._values(hashes_K)[:, None] ^ self.flips_F).ravel()
        starts, stops = self.starts[values], self.starts[values.astype(np.int64) + 1]
        sizes = stops - starts
        ends = np.cumsum(sizes)
        places = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - sizes), sizes)
        return self.rows_N[places], np.repeat(np.arange(len(values)) // len(self.flips_F), sizes)

    def _values(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes >> self.shift).astype(np.uint16)


def _bands(hashes_N: np.ndarray, distance: int) -> list[_Band]:
    """Pigeonholes: `distance` differing bits cannot exceed the radius of every band, as radius + 1 over all bands add
    up to distance + 1. A band without a share in it is not asked."""
    shares = [(distance + 1 + band) // _BANDS for band in range(_BANDS)]
    return [_Band(hashes_N, _BAND_BITS * band, share - 1) for band, share in enumerate(shares) if share]
