"""BFF `old-both`: paragraphs and documents whose n-grams were seen before, by a Bloom filter (DCLM, bff.rs).

A paragraph goes when more than `threshold` of its 13-grams are in the filter, and is then not inserted; a document goes
as a whole when that holds for its n-grams altogether. Paragraphs under 13 words are left alone. The outcome depends on
the order of the documents, which the manifest fixes.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from stages.dedup.shingles import mix, ngram_hashes, word_hashes

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""Step between the probes of one hash. Each is mixed anew: a linear step modulo a filter size that is a multiple of 64
ties the probes to each other (at 1,024 bits they all follow from the first, and 0.2 of new n-grams count as seen)."""


@njit(nogil=True, cache=True)
def _contained(bits, hashes, probes):
    """How many of the hashes are in the filter."""
    count = 0
    size = np.uint64(bits.shape[0] * 64)
    for i in range(hashes.shape[0]):
        state = hashes[i]
        inside = True
        for _ in range(probes):
            position = state % size
            if (bits[position >> np.uint64(6)] >> (position & np.uint64(63))) & np.uint64(1) == np.uint64(0):
                inside = False
                break
            state = mix(state + GOLDEN)
        count += inside
    return count


@njit(nogil=True, cache=True)
def _insert(bits, hashes, probes):
    size = np.uint64(bits.shape[0] * 64)
    for i in range(hashes.shape[0]):
        state = hashes[i]
        for _ in range(probes):
            position = state % size
            bits[position >> np.uint64(6)] |= np.uint64(1) << (position & np.uint64(63))
            state = mix(state + GOLDEN)


class BloomDedup:
    """The filter, and what it does with one document after another."""

    def __init__(self, expected: int, width: int = 13, threshold: float = 0.8, false_positives: float = 0.01) -> None:
        bits = max(1024, math.ceil(-max(expected, 1) * math.log(false_positives) / math.log(2) ** 2))
        self.probes = max(1, round(bits / max(expected, 1) * math.log(2)))
        self.bits = np.zeros((bits + 63) // 64, np.uint64)
        self.width, self.threshold = width, threshold
        self.paragraphs_removed = 0

    def filter(self, text: str) -> str | None:
        """The text without paragraphs seen before; None when the document as a whole was."""
        kept, total, seen = [], 0, 0
        for paragraph in text.split("\n"):
            hashes = ngram_hashes(word_hashes(paragraph), self.width)
            contained = _contained(self.bits, hashes, self.probes)
            total, seen = total + len(hashes), seen + contained
            if len(hashes) and contained > self.threshold * len(hashes):
                self.paragraphs_removed += 1
                continue
            _insert(self.bits, hashes, self.probes)
            kept.append(paragraph)
        if total and seen > self.threshold * total:
            return None
        return "\n".join(kept)
