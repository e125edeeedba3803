"""BFF `old-both`: paragraphs and documents whose n-grams were seen before, by a Bloom filter (DCLM,
dedup/bff/src/main.rs).

A paragraph begins at a line feed and holds it. It goes when more than 0.8 of its 13-grams of words (Unicode word
boundaries, `word_boundaries.py`) are in the filter, and is then not inserted; a document goes as a whole when that
holds for the 13-grams of all its paragraphs. Paragraphs under 13 words are left alone. The outcome depends on the
order of the documents, which the inputs fix (`bloom_pass.py`).

The filter lies in blocks of one cache line: an n-gram costs one miss.
"""

from __future__ import annotations

import numpy as np

from stages.dedup.bloom_size import BLOCK_BITS, dimensions
from stages.dedup.shingles import BASE, _windows
from stages.dedup.word_boundaries import POSITION, next_word_hashes, paragraph_words, properties
from stages.lib.data.numba_jit import fmix64, njit

WIDTH, THRESHOLD = 13, 0.8
"""Of DCLM-BASELINE: `--min-ngram-size 13 --max-ngram-size 13 --filtering-threshold 0.8` (dedup/bff of the DCLM
repository).
"""
PIECE = 1 << 20
"""Bytes of a paragraph that are looked at together: a longer one is read in pieces, twice, to the same result."""


@njit
def block_of(value, blocks):
    """The block of a hash: the upper half of their 128-bit product, so that every block of any number is reached, all
    equally often. Uneven 32-bit halves would end at 2^32 blocks.

    value: uint64; blocks: int64, 1 to 2^63. Returns int64.
    """
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    many = np.uint64(blocks)
    inner = (value >> half) * (many & low) + ((value & low) * (many & low) >> half)
    outer = (value & low) * (many >> half) + (inner & low)
    return np.int64((value >> half) * (many >> half) + (inner >> half) + (outer >> half))


@njit
def block_contains(block, value, probes):
    """Whether a hash is in its block ([8], uint64). Seven places come out of each mixed word, nine bits each.

    All places are looked at, though one may say no: without a branch the processor waits for several hashes' blocks at
    once.
    """
    state, contained = value, np.uint64(1)
    for start in range(0, probes, 7):
        places = state = fmix64(state + BASE)
        for _ in range(min(7, probes - start)):
            contained &= block[places >> np.uint64(6) & np.uint64(7)] >> (places & np.uint64(63))
            places >>= np.uint64(9)
    return contained != 0


@njit
def block_insert(block, value, probes):
    """Put a hash (uint64) into its block, with as many `probes` as `block_contains` is asked with."""
    state = value
    for start in range(0, probes, 7):
        places = state = fmix64(state + BASE)
        for _ in range(min(7, probes - start)):
            block[places >> np.uint64(6) & np.uint64(7)] |= np.uint64(1) << (places & np.uint64(63))
            places >>= np.uint64(9)


@njit
def contains(bits, value, probes):
    """Whether a hash is in the filter `bits` ([blocks, 8], uint64)."""
    return block_contains(bits[block_of(value, bits.shape[0])], value, probes)


@njit
def insert(bits, value, probes):
    """Put a hash (uint64) into the filter `bits`."""
    block_insert(bits[block_of(value, bits.shape[0])], value, probes)


@njit
def _copy(source, start, end, out, filled):
    """Append bytes to the first `filled` of `out`; how many there are then."""
    for i in range(end - start):
        out[filled + i] = source[start + i]
    return filled + end - start


@njit
def _line_end(source, start, end):
    """Where the paragraph that begins at `start` ends: before the next line feed."""
    stop = start + 1
    while stop < end and source[stop] != 10:
        stop += 1
    return stop


@njit
def _long_paragraph(source, start, stop, classes, bits, probes, width, words, ngrams, put):
    """The n-grams of a paragraph a piece at a time: how many, and how many are in the filter; `put`: they go into it
    instead.
    """
    state = np.zeros(8, np.int64)
    state[POSITION] = start
    have, grams, contained = 0, 0, 0
    while state[POSITION] < stop:
        have += next_word_hashes(source, stop, classes, state, words[have:])
        if have < width:
            continue
        more = _windows(words, have, width, ngrams)
        for i in range(more):
            ngrams[i] = fmix64(ngrams[i])
        for i in range(more):
            if put:
                insert(bits, ngrams[i], probes)
            else:
                contained += int(contains(bits, ngrams[i], probes))
        grams, have = grams + more, width - 1
        for i in range(have):
            words[i] = words[more + i]
    return grams, contained


@njit
def filter_texts(source, ends, classes, bits, probes, width, threshold, marks, words, ngrams, out, out_ends, counts):
    """Write what is left of each text into `out`, and where it ends; a text that goes as a whole is empty. Whether
    anything is written: nothing is when all texts stay as they are.

    source: [bytes] uint8, texts one after another; ends: [texts + 1] int64, where they begin and end; classes: uint16,
    `word_boundaries.properties`; bits, probes: see `contains`; width: words in an n-gram; threshold: 0 to 1.
    Worked in: marks [piece] uint8, words and ngrams [two more] uint64: a longer paragraph is read in pieces.
    Written: out [bytes] uint8, out_ends [texts + 1] int64 (its first is the caller's), and added to:
    counts [4] int64: paragraphs removed, bytes removed with them, n-grams, n-grams seen before.
    """
    first, piece = ends[0], marks.shape[0]
    filled, changed = 0, False
    for d in range(ends.shape[0] - 1):
        total, seen, cut, before = 0, 0, 0, filled
        start, end = ends[d], ends[d + 1]
        held = start  # from here on the text stays, but is not copied yet
        while start < end:
            grams, contained, stop = 0, 0, end
            if end - start > piece:
                stop = _line_end(source, start, end)
            long = stop - start > piece
            if long:
                grams, contained = _long_paragraph(
                    source, start, stop, classes, bits, probes, width, words, ngrams, False
                )
            else:
                have, stop = paragraph_words(source, start, stop, classes, marks, words)
                if have >= width:
                    grams = _windows(words, have, width, ngrams)
                    for i in range(grams):
                        ngrams[i] = fmix64(ngrams[i])
                    for i in range(grams):
                        contained += int(contains(bits, ngrams[i], probes))
            total, seen = total + grams, seen + contained
            if grams and contained > threshold * grams:
                counts[0] += 1
                cut += stop - start
                if not changed:  # so far all stayed as it was: nothing is in `out` yet
                    changed, filled = True, _copy(source, first, held, out, 0)
                filled = _copy(source, held, start, out, filled)
                held = stop
            elif long:
                _long_paragraph(source, start, stop, classes, bits, probes, width, words, ngrams, True)
            else:
                for i in range(grams):
                    insert(bits, ngrams[i], probes)
            start = stop
        if total and seen > threshold * total:
            if not changed:
                changed, filled = True, _copy(source, first, ends[d], out, 0)
            filled = before
        else:
            filled = _copy(source, held, end, out, filled) if changed else end - first
            counts[1] += cut
        counts[2] += total
        counts[3] += seen
        out_ends[d + 1] = filled
    return changed


class BloomFilter:
    """The filter, in memory, and what it does with texts."""

    def __init__(self, expected: int) -> None:
        blocks, self.probes = dimensions(expected)
        self.bits = np.zeros((blocks, BLOCK_BITS // 64), np.uint64)
        self.counts = np.zeros(4, np.int64)

    def filter(
        self,
        source: np.ndarray,
        ends: np.ndarray,
        width: int = WIDTH,
        threshold: float = THRESHOLD,
        piece: int = PIECE,
    ) -> tuple[np.ndarray, np.ndarray]:
        """What is left of texts, in order: their bytes (`source` itself where nothing goes), and ends ([texts + 1]).

        Besides a copy of what is left it takes 17 bytes for each of `piece`, or of the longest text.
        """
        piece = max(2 * width, min(piece, int(np.diff(ends).max(initial=0))))
        marks, words, ngrams = np.empty(piece, np.uint8), np.empty(piece + 2, np.uint64), np.empty(piece + 2, np.uint64)
        out, out_ends = np.empty(int(ends[-1] - ends[0]), np.uint8), np.zeros(len(ends), np.int64)
        changed = filter_texts(
            source,
            ends,
            properties(),
            self.bits,
            self.probes,
            width,
            threshold,
            marks,
            words,
            ngrams,
            out,
            out_ends,
            self.counts,
        )
        return (out[: out_ends[-1]] if changed else source[ends[0] : ends[-1]]), out_ends
