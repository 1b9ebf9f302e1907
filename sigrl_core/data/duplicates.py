"""Finds duplicates in a listing: rows with equal bytes, or with perceptual hashes that differ in a few bits."""

from __future__ import annotations

from itertools import combinations

import numpy as np

DIGEST_BYTES = 32
MAX_DISTANCE = 15
"""Maximum distance in bits. Ten of 64 bits is already large; unrelated images differ in about 32."""

_BAND_BITS = 16
_BANDS = 64 // _BAND_BITS
_BLOCK = 512  # rows that are compared pairwise


def find_repeated(digests: bytes | bytearray | memoryview) -> tuple[np.ndarray, np.ndarray]:
    """Finds rows whose digest an earlier row has.

    Args:
        digests: N sha256 digests, concatenated. Sorting 10 million takes about 10 s and 0.5 GB.

    Returns:
        These rows, in ascending order, and the first row with the same digest for each; both int64 [R].

    Raises:
        ValueError: the length is not a multiple of 32.
    """
    flat = np.frombuffer(digests, np.uint8)
    if len(flat) % DIGEST_BYTES:
        raise ValueError(f"{len(flat)} bytes of digests; expected a multiple of {DIGEST_BYTES}")
    words_N4 = flat.view(np.uint64).reshape(-1, DIGEST_BYTES // 8)
    order_N = np.lexsort(words_N4.T)  # stable: of equal digests the earliest comes first
    sorted_N4 = words_N4[order_N]
    starts_N = np.ones(len(order_N), bool)
    np.any(sorted_N4[1:] != sorted_N4[:-1], axis=1, out=starts_N[1:])
    repeated_R, starts = np.flatnonzero(~starts_N), np.flatnonzero(starts_N)
    firsts_R = starts[np.searchsorted(starts, repeated_R) - 1]
    rows_R, firsts_R = order_N[repeated_R], order_N[firsts_R]
    ascending_R = np.argsort(rows_R)
    return rows_R[ascending_R], firsts_R[ascending_R]


def keep_dissimilar(hashes_N: np.ndarray, distance: int, among_N: np.ndarray | None = None) -> np.ndarray:
    """Returns a bool [N] mask: in order, each row is dropped that is near a row kept before it.

    The result is exact. Time grows with the kept rows times the rows that share about 16 bits with one of them: 100,000
    unrelated rows take 0.2 s at a distance of 3 and 3 s at 10; a million take 3 s at 3 and 20 s at 6.

    Args:
        hashes_N: uint64 perceptual hashes.
        distance: maximum number of differing bits of near hashes, at most `MAX_DISTANCE`.
        among_N: bool; False for rows that are dropped before and are compared with no other. None for all True.

    Raises:
        ValueError: `distance` out of range.
    """
    if not 0 <= distance <= MAX_DISTANCE:
        raise ValueError(f"distance = {distance}; expected 0 to {MAX_DISTANCE} bits")
    rows = np.arange(len(hashes_N)) if among_N is None else np.flatnonzero(among_N)
    # Of equal hashes only the first can be kept, because a row that is near it is near all of them.
    _, firsts = np.unique(hashes_N[rows], return_index=True)
    rows = rows[np.sort(firsts)]
    kept_N = np.zeros(len(hashes_N), bool)
    kept_N[rows] = _keep_dissimilar_distinct(hashes_N[rows].astype(np.uint64), distance)
    return kept_N


def _keep_dissimilar_distinct(hashes_N: np.ndarray, distance: int) -> np.ndarray:
    """Processes rows in blocks, as a sieve: the rows that a block keeps drop all rows near them."""
    bands = _bands(hashes_N, distance)
    dropped_N = np.zeros(len(hashes_N), bool)
    kept_N = np.zeros(len(hashes_N), bool)
    for start in range(0, len(hashes_N), _BLOCK):
        rows = start + np.flatnonzero(~dropped_N[start : start + _BLOCK])
        rows = rows[_keep_dissimilar_pairwise(hashes_N[rows], distance)]
        kept_N[rows] = True
        for band in bands:
            similar, places = band.find(hashes_N[rows])
            near = np.bitwise_count(hashes_N[similar] ^ hashes_N[rows[places]]) <= distance
            dropped_N[similar[near]] = True  # also earlier rows and the row itself, which are decided
    return kept_N


def _keep_dissimilar_pairwise(hashes_K: np.ndarray, distance: int) -> np.ndarray:
    near_KK = np.tril(np.bitwise_count(hashes_K[:, None] ^ hashes_K) <= distance, -1)
    kept_K = np.ones(len(hashes_K), bool)
    for row in np.flatnonzero(near_KK.any(axis=1)):
        kept_K[row] = not (near_KK[row] & kept_K).any()
    return kept_K


class _Band:
    """An index by 16 bits of the hash; finds rows that differ from a hash in at most `radius` of these bits."""

    def __init__(self, hashes_N: np.ndarray, shift: int, radius: int) -> None:
        self.shift = np.uint64(shift)
        values_N = self._values(hashes_N)
        self.rows_N = np.argsort(values_N, kind="stable")
        self.starts = np.searchsorted(values_N[self.rows_N], np.arange(2**_BAND_BITS + 1))
        flips = [bits for number in range(radius + 1) for bits in combinations(range(_BAND_BITS), number)]
        self.flips_F = np.array([sum(1 << bit for bit in bits) for bits in flips], np.uint16)

    def find(self, hashes_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns pairs of a row and the place in `hashes_K` of the hash that it is similar to."""
        values = (self._values(hashes_K)[:, None] ^ self.flips_F).ravel()
        starts, stops = self.starts[values], self.starts[values.astype(np.int64) + 1]
        sizes = stops - starts
        ends = np.cumsum(sizes)
        places = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - sizes), sizes)
        return self.rows_N[places], np.repeat(np.arange(len(values)) // len(self.flips_F), sizes)

    def _values(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes >> self.shift).astype(np.uint16)


def _bands(hashes_N: np.ndarray, distance: int) -> list[_Band]:
    """Returns bands of which at least one finds any two hashes within `distance`.

    By the pigeonhole principle: radius + 1 over all bands adds up to distance + 1, so `distance` differing bits cannot
    exceed the radius of every band. Bands with a share of zero are left out.
    """
    shares = [(distance + 1 + band) // _BANDS for band in range(_BANDS)]
    return [_Band(hashes_N, _BAND_BITS * band, share - 1) for band, share in enumerate(shares) if share]
