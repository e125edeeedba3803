"""MinHash signatures and the LSH keys made of them.

A signature value is the minimum over a set of `a * h + b mod 2^32`: datasketch 2's scheme `affine32`, with its pre-mix
and its permutations of the same seed, so that the signatures are equal to datasketch's on the same 32-bit hashes.
"""

from __future__ import annotations

import numpy as np

from stages.dedup.normalization import table
from stages.dedup.shingles import (
    CHARACTERS,
    DONE,
    KINDS,
    PYTHON,
    SPACES,
    ShingleKind,
    begin,
    buffers,
    new_state,
    next_hashes,
    reread,
)
from stages.lib.data.numba_jit import fmix64, njit

EMPTY = np.uint32(0xFFFFFFFF)


def permutations(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Multipliers (odd) and offsets of `count` affine maps on 32-bit values: [count], uint32. Drawn as datasketch 2
    does.
    """
    rng = np.random.RandomState(seed)
    multipliers = rng.randint(0, 1 << 31, count, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return multipliers, rng.randint(0, 1 << 32, count, dtype=np.uint32)


@njit
def fold(value):
    """32 bits of a raw 64-bit hash: what datasketch would be handed as the hash of the shingle.

    uint64 in, uint32 out.
    """
    return np.uint32(value ^ (value >> np.uint64(32)))


@njit
def fmix32(value):
    """datasketch's pre-mix of a 32-bit hash (MurmurHash3's fmix32).

    uint32 in, uint32 out.
    """
    value ^= value >> np.uint32(16)
    value = np.uint32(value * np.uint32(0x85EBCA6B))
    value ^= value >> np.uint32(13)
    value = np.uint32(value * np.uint32(0xC2B2AE35))
    return np.uint32(value ^ (value >> np.uint32(16)))


@njit
def lower_minima(hashes, count, multipliers, offsets, minima):
    """Lower each minimum to those of `count` more raw hashes. Eight hashes at a time: the minima are loaded once for
    them.

    hashes: [at least count] uint64; multipliers, offsets, minima: [permutations] uint32.
    """
    i = 0
    while i + 8 <= count:
        h0, h1, h2, h3 = (
            fmix32(fold(hashes[i])),
            fmix32(fold(hashes[i + 1])),
            fmix32(fold(hashes[i + 2])),
            fmix32(fold(hashes[i + 3])),
        )
        h4, h5, h6, h7 = (
            fmix32(fold(hashes[i + 4])),
            fmix32(fold(hashes[i + 5])),
            fmix32(fold(hashes[i + 6])),
            fmix32(fold(hashes[i + 7])),
        )
        for k in range(minima.shape[0]):
            a, b = multipliers[k], offsets[k]
            low = min(np.uint32(a * h0 + b), np.uint32(a * h1 + b))
            low = min(low, min(np.uint32(a * h2 + b), np.uint32(a * h3 + b)))
            high = min(np.uint32(a * h4 + b), np.uint32(a * h5 + b))
            high = min(high, min(np.uint32(a * h6 + b), np.uint32(a * h7 + b)))
            minima[k] = min(minima[k], min(low, high))
        i += 8
    while i < count:
        value = fmix32(fold(hashes[i]))
        for k in range(minima.shape[0]):
            minima[k] = min(minima[k], np.uint32(multipliers[k] * value + offsets[k]))
        i += 1


@njit
def band_keys(minima, bands, rows, out):
    """One 64-bit key for each band, from its rows and its number; equal bands, equal keys.

    minima: [bands * rows or more] uint32. Written: out [bands] uint64.
    """
    for band in range(bands):
        key = np.uint64(band + 1)
        for row in range(rows):
            key = fmix64(key ^ np.uint64(minima[band * rows + row])) + np.uint64(0x9E3779B97F4A7C15)
        out[band] = key


@njit
def sign_texts(
    kind,
    width,
    mapping,
    source,
    ends,
    multipliers,
    offsets,
    bands,
    rows,
    codes,
    words,
    hashes,
    state,
    minima,
    keys,
    counts,
):
    """Sign the texts `source[ends[d]:ends[d + 1]]`: `minima` [documents, permutations], `keys` [documents, bands], and
    `counts` [documents, 3]: characters of the normalized text, spaces among them, shingles (-1: left to Python).

    kind: `KINDS`; source: [bytes] uint8; ends: [documents + 1] int64; multipliers, offsets: [permutations] uint32;
    mapping, codes, words, hashes, state: see `shingles.next_hashes`. Written: minima, uint32 (with one row alone, the
    last document's); keys, uint64; counts, int64.
    """
    for d in range(ends.shape[0] - 1):
        begin(state, ends[d])
        row = minima[d % minima.shape[0]]
        row[:] = EMPTY
        shingles = 0
        while state[DONE] == 0:
            count = next_hashes(kind, width, mapping, source, ends[d + 1], state, codes, words, hashes)
            lower_minima(hashes, count, multipliers, offsets, row)
            shingles += count
        band_keys(row, bands, rows, keys[d])
        counts[d, 0], counts[d, 1], counts[d, 2] = state[CHARACTERS], state[SPACES], shingles
        if state[PYTHON]:
            counts[d, 2] = -1


class Signer:
    """Signs batches of documents by one recipe, in buffers that are reused."""

    def __init__(self, kind: ShingleKind, width: int, permutations_: int, bands: int, rows: int, seed: int) -> None:
        self.kind: ShingleKind = kind
        self.width, self.bands, self.rows = width, bands, rows
        self.multipliers, self.offsets = permutations(permutations_, seed)
        self._state, self._buffers = new_state(), buffers()

    def sign(
        self, source: np.ndarray, ends: np.ndarray, keep: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(keys, counts, minima) of each text, see `sign_texts`; keep: minima of all texts, else of the last alone."""
        size = len(ends) - 1
        minima = np.empty((size if keep else 1, len(self.multipliers)), np.uint32)
        keys, counts = np.empty((size, self.bands), np.uint64), np.zeros((size, 3), np.int64)
        self._run(source, ends, minima, keys, counts)
        for d in np.flatnonzero(counts[:, 2] < 0):
            text = reread(self.kind, source[ends[d] : ends[d + 1]].tobytes().decode())
            one = np.frombuffer(text, np.uint8)
            place = minima[d : d + 1] if keep else minima
            self._run(one, np.array([0, len(one)]), place, keys[d : d + 1], counts[d : d + 1])
        return keys, counts, minima

    def _run(
        self, source: np.ndarray, ends: np.ndarray, minima: np.ndarray, keys: np.ndarray, counts: np.ndarray
    ) -> None:
        fixed = (
            KINDS[self.kind],
            self.width,
            table(),
            source,
            ends,
            self.multipliers,
            self.offsets,
            self.bands,
            self.rows,
        )
        sign_texts(*fixed, *self._buffers, self._state, minima, keys, counts)
