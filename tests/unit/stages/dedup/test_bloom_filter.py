"""The Bloom filter's arithmetic at any size, and documents that are read in pieces."""

from __future__ import annotations

import math
import random
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from stages.dedup.bloom_filter import BloomFilter, block_contains, block_insert, block_of
from stages.dedup.bloom_size import BYTES_PER_NGRAM, FALSE_POSITIVES, dimensions, expected_rate
from stages.lib.data.numba_jit import njit

WIDTHS = sorted({1, *(w for n in range(1, 41) for w in ((1 << n) - 1, 1 << n, (1 << n) + 1))})
"""Numbers of blocks: every power of two to 2^40 and its odd neighbours."""
SAMPLE = 1 << 16


@njit
def blocks_of(values, blocks):
    """`block_of` of every value: [values] uint64 to int64."""
    out = np.empty(values.shape[0], np.int64)
    for i in range(values.shape[0]):
        out[i] = block_of(values[i], blocks)
    return out


@njit
def fill(bits, values, places, probes):
    """Put hashes into the blocks at these places."""
    for i in range(values.shape[0]):
        block_insert(bits[places[i]], values[i], probes)


@njit
def found(bits, values, places, probes):
    """How many hashes are in the blocks at these places."""
    count = 0
    for i in range(values.shape[0]):
        count += int(block_contains(bits[places[i]], values[i], probes))
    return count


def hashes(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(0, 1 << 64, count, dtype=np.uint64)


@pytest.mark.parametrize("blocks", WIDTHS)
def test_every_width_is_the_exact_product_and_even(blocks: int) -> None:
    """The index is floor(hash x blocks / 2^64) exactly, of extremes too; over as many classes as there are blocks, 256
    at most, the sample is even: chi-square within 5 sigma (its variance is twice its degrees of freedom).
    """
    edges = [0, 1, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
    borders = [min((1 << 64) - 1, -(-k * (1 << 64) // blocks)) for k in (1, blocks // 2, blocks - 1)]
    values = np.array([*edges, *(b - d for b in borders for d in (0, 1) if b >= d)], np.uint64)
    values = np.concatenate([values, hashes(np.random.default_rng(blocks), SAMPLE)])
    places = blocks_of(values, blocks)
    exact = [v * blocks >> 64 for v in values[:2000].tolist()]
    assert places[:2000].tolist() == exact
    assert blocks_of(np.array([(1 << 64) - 1], np.uint64), blocks)[0] == blocks - 1  # the last block is reached
    classes = min(blocks, 256)
    sizes = np.diff([-(-k * blocks // classes) for k in range(classes + 1)])  # blocks in each class
    places = places[-SAMPLE:]
    counts = np.bincount([p * classes // blocks for p in places.tolist()], minlength=classes)
    expected = SAMPLE * sizes / blocks
    chi = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi - (classes - 1)) <= 5 * math.sqrt(2 * classes)


@pytest.mark.parametrize("terabytes", [0.5, 2, 10])
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_false_positives_of_ten_terabytes_are_those_of_theory(terabytes: float, where: str) -> None:
    """A filter for 10 TB has 2 TB: a window of 4,096 of its blocks is filled by as many hashes as fall into it, which
    the index arithmetic finds there, and is asked for others. Rate and load are those of theory within 5 sigma.
    """
    expected = int(terabytes * 1e12) // BYTES_PER_NGRAM
    blocks, probes = dimensions(expected)
    assert terabytes < 2 or blocks > 1 << 32
    window = 4096
    begin = {"first": 0, "middle": blocks // 2, "last": blocks - window}[where]
    low, high = (-(-place * (1 << 64) // blocks) for place in (begin, begin + window))
    rng = np.random.default_rng(blocks)
    here = rng.poisson(expected * (high - low) / (1 << 64))
    known, new = (rng.integers(low, high - 1, n, dtype=np.uint64, endpoint=True) for n in (here, 100_000))
    bits = np.zeros((window, 8), np.uint64)
    places = blocks_of(known, blocks) - begin
    assert places.min() >= 0
    assert places.max() < window
    fill(bits, known, places, probes)
    assert found(bits, known, places, probes) == len(known)
    rate = found(bits, new, blocks_of(new, blocks) - begin, probes) / len(new)
    theory = expected_rate(blocks * 512 / expected, probes)
    assert theory <= FALSE_POSITIVES
    load = np.bincount(places, minlength=window)
    mean = expected / blocks
    assert abs(load.var() / mean - 1) < 5 * math.sqrt(2 / window)  # Poisson: the variance is the mean
    # besides the sample's own error, the window's blocks differ: together some 2 % of the rate
    assert abs(rate - theory) <= 5 * math.hypot(math.sqrt(theory / len(new)), 0.01 * theory)


def left(machine: BloomFilter, texts: list[str], piece: int) -> list[str]:
    data = "".join(texts).encode()
    out, ends = machine.filter(
        np.frombuffer(data, np.uint8), np.cumsum([0, *(len(t.encode()) for t in texts)]), piece=piece
    )
    return [out[a:b].tobytes().decode() for a, b in pairwise(ends)]


ODD = [
    "a\u0301b",
    "don't",
    "3.14",
    '\u05d0"\u05d1',
    "\U0001f1e6\U0001f1e7\U0001f1e8",
    "\U0001f469\u200d\U0001f467",
    "\u30ab\u30bf",
    "x:y",
    "\u2028",
]
"""Words about which the rules look ahead, and which pieces must not cut."""


@pytest.mark.parametrize("seed", range(3))
def test_pieces_give_what_the_whole_gives(seed: int) -> None:
    """Every paragraph is longer than a piece of 32 bytes; with one of the texts' own length none is."""
    rng = random.Random(seed)
    vocabulary = [*ODD, *("".join(rng.choices("abcdefgh", k=rng.randint(1, 9))) for _ in range(300))]
    paragraphs = [" ".join(rng.choices(vocabulary, k=rng.choice([2, 13, 30, 400]))) for _ in range(30)]
    paragraphs += [" ".join([*p.split(" ")[: rng.randint(5, 60)], *rng.choices(vocabulary, k=8)]) for p in paragraphs]
    texts = ["\n".join(rng.choices(paragraphs, k=rng.randint(0, 6))) for _ in range(80)]
    whole, pieces = BloomFilter(200_000), BloomFilter(200_000)
    wanted = left(whole, texts, 1 << 20)
    assert left(pieces, texts, 32) == wanted
    assert pieces.counts.tolist() == whole.counts.tolist()
    assert whole.counts[0] > 10
    assert (pieces.bits == whole.bits).all()
    assert 3 < sum(not w and bool(t) for w, t in zip(wanted, texts, strict=True)) < 60


def test_what_stays_is_not_copied() -> None:
    data = np.frombuffer(" ".join(map(str, range(5000))).encode(), np.uint8)
    out, ends = BloomFilter(10_000).filter(data, np.array([0, len(data)]))
    assert np.shares_memory(out, data)
    assert ends.tolist() == [0, len(data)]


def test_a_large_paragraph_takes_no_more_than_its_copy() -> None:
    """Words and n-grams of a whole paragraph would be sixteen times its bytes."""
    data = np.frombuffer(" ".join(map(str, range(1_000_000))).encode(), np.uint8)
    machine = BloomFilter(1_100_000)
    machine.filter(data[:1000], np.array([0, 1000]), piece=64)
    tracemalloc.start()
    try:
        machine.filter(data, np.array([0, len(data)]), piece=1 << 16)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * len(data)
    finally:
        tracemalloc.stop()
