"""In which order windows are trained on: a function of the seed and the position alone, with no list of them anywhere.

    order = DataOrder(windows=750_000_000, lanes=512, block=64, seed=0)
    order.numbers(np.arange(first, first + 512))        # the windows of a global batch

The windows lie on disk in random order already (`tokenize` shuffles them), so neighbours need not be parted one by one.
An epoch takes *blocks* of consecutive windows in an order that a keyed bijection gives, `lanes` blocks at a time: a
batch has one window of each of so many blocks, drawn from all over the disk, and the next batch another window of the
same blocks, in an order of each block's own. What stands at one place of the batch comes from one block after another:
whoever works on that place reads each of its blocks once, and nobody else reads them, however many share the batch.

The rest of an epoch, less than one round of whole blocks, is cut into shorter blocks, and what then remains is taken
one by one. Every window comes once an epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

ROUNDS = 4
"""Of the network, each of which changes both halves: two are random enough for a cipher's proof, small domains want
more.
"""
ROUNDS_AN_EPOCH = 64
"""Rounds of blocks that an epoch has at least: fewer windows make shorter blocks."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele et al. 2014): each bit of a result depends on all bits of its value."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def bijection(numbers: np.ndarray, count: int, keys: np.ndarray) -> np.ndarray:
    """Where numbers below `count` go in the permutation of their key (one for each): int64.

    A Feistel network over the next power of two; what lands beyond `count` goes through again until it does not.
    """
    bits = max(2, (count - 1).bit_length())
    low_bits = np.uint64(bits // 2)
    low, high = np.uint64((1 << bits // 2) - 1), np.uint64((1 << bits - bits // 2) - 1)
    values, out = numbers.astype(np.uint64), np.empty(len(numbers), np.uint64)
    left = np.arange(len(numbers))
    while len(left):
        above, below, key = values >> low_bits, values & low, keys
        for _ in range(ROUNDS):
            key = key + _GOLDEN
            above = above ^ _mix(below + key) & high
            key = key + _GOLDEN
            below = below ^ _mix(above + key) & low
        values = above << low_bits | below
        done = values < count
        out[left[done]] = values[done]
        left, values, keys = left[~done], values[~done], keys[~done]
    return out.astype(np.int64)


def block_windows(windows: int, lanes: int, most: int) -> int:
    """Windows of a block: `most`, or half of it and so on where there are too few for as many rounds as an epoch is to
    have.
    """
    while most > 1 and most * lanes * ROUNDS_AN_EPOCH > windows:
        most //= 2
    return most


@dataclass(frozen=True)
class DataOrder:
    """windows: of an epoch, at least one; lanes: of a global batch; block: windows of a block."""

    windows: int
    lanes: int
    block: int
    seed: int

    @cached_property
    def _parts(self) -> list[tuple[int, int, int]]:
        """Parts of an epoch, which are parts of the disk too: where each begins, windows of a block there, blocks."""
        if self.block == 1:
            return [(0, 1, self.windows)]
        blocks = self.windows // (self.block * self.lanes) * self.lanes
        first = blocks * self.block
        shorter, rest = divmod(self.windows - first, self.lanes)
        return [(0, self.block, blocks), (first, shorter, self.lanes), (self.windows - rest, 1, rest)]

    def numbers(self, positions: np.ndarray) -> np.ndarray:
        """The windows at these positions of the endless sequence of epochs: int64."""
        epochs, places = np.divmod(np.asarray(positions, np.int64), self.windows)
        out = np.empty(len(places), np.int64)
        with np.errstate(over="ignore"):
            keys = _mix(np.uint64(self.seed % 2**64) * _GOLDEN + _mix(epochs.astype(np.uint64) + _GOLDEN))
            for number, (first, block, blocks) in enumerate(self._parts):
                mine = (first <= places) & (places < first + block * blocks)
                if mine.any():
                    out[mine] = first + self._within(
                        places[mine] - first, block, blocks, keys[mine] + np.uint64(number)
                    )
        return out

    def _within(self, places: np.ndarray, block: int, blocks: int, keys: np.ndarray) -> np.ndarray:
        """Windows of one part, counted from where it begins."""
        turn, rest = np.divmod(places, self.lanes * block)
        use, lane = np.divmod(rest, self.lanes)
        which = bijection(turn * self.lanes + lane, blocks, keys)
        if block == 1:
            return which
        return which * block + bijection(use, block, _mix(keys ^ _mix(which.astype(np.uint64) + _GOLDEN)))
