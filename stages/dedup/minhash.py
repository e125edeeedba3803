"""MinHash signatures, LSH candidates and clusters.

A signature value is the minimum over a set of `a * h + b mod 2^32`: datasketch 2's `affine32` family in shape, with
permutations of our own. Estimates and the banding curve are tested against datasketch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np
from numba import njit

ALL_PAIRS = 40
"""Up to this many documents in a bucket every pair is a candidate; beyond, each with the first and with its neighbour."""


def permutations(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Multipliers (odd) and offsets of `count` affine maps on 32-bit values, each of shape [count], uint32."""
    rng = np.random.default_rng(seed)
    multipliers = (rng.integers(0, 1 << 32, count, dtype=np.uint64) | np.uint64(1)).astype(np.uint32)
    return multipliers, rng.integers(0, 1 << 32, count, dtype=np.uint64).astype(np.uint32)


@njit(nogil=True, cache=True)
def signature(hashes, multipliers, offsets, out):
    """Write the signature of a set of uint64 hashes into `out` [permutations], uint32; all ones for an empty set."""
    for k in range(out.shape[0]):
        out[k] = np.uint32(0xFFFFFFFF)
    for i in range(hashes.shape[0]):
        value = np.uint32(hashes[i])
        for k in range(out.shape[0]):
            mapped = np.uint32(multipliers[k] * value + offsets[k])
            out[k] = min(out[k], mapped)


def sign(sets: Iterable[np.ndarray], count: int, seed: int) -> np.ndarray:
    """Signatures of many sets: [sets, count], uint32."""
    multipliers, offsets = permutations(count, seed)
    rows = []
    for hashes in sets:
        row = np.empty(count, np.uint32)
        signature(hashes, multipliers, offsets, row)
        rows.append(row)
    return np.array(rows, np.uint32).reshape(len(rows), count)


def candidates(signatures: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """Pairs (i < j) that agree on all rows of at least one band: [pairs, 2], int64, sorted, unique."""
    found: set[tuple[int, int]] = set()
    for band in range(bands):
        part = np.ascontiguousarray(signatures[:, band * rows : (band + 1) * rows])
        keys = part.view(np.dtype((np.void, part.dtype.itemsize * rows))).ravel()
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        order = np.argsort(inverse, kind="stable")
        ends = np.cumsum(counts)
        for group in np.flatnonzero(counts > 1):
            found.update(_pairs(order[ends[group] - counts[group] : ends[group]].tolist()))
    return np.array(sorted(found), np.int64).reshape(-1, 2)


def _pairs(members: list[int]) -> Iterable[tuple[int, int]]:
    if len(members) <= ALL_PAIRS:
        return [(a, b) for i, a in enumerate(members) for b in members[i + 1 :]]
    return [(members[0], b) for b in members[1:]] + list(pairwise(members[1:]))


def clusters(count: int, edges: np.ndarray) -> list[list[int]]:
    """Connected components of more than one member, members ascending, components by their first member."""
    parent = list(range(count))

    def find(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for one, other in edges.tolist():
        first, second = find(one), find(other)
        if first != second:
            parent[max(first, second)] = min(first, second)
    groups: dict[int, list[int]] = {}
    for node in np.unique(edges).tolist():
        groups.setdefault(find(node), []).append(node)
    return [sorted(group) for _, group in sorted(groups.items())]


def keep_first(group: list[int]) -> list[int]:
    """SlimPajama: of a cluster, the first document in input order."""
    return group[:1]


def keep_extremes(group: list[int], similarity: Callable[[int, int], float], threshold: float) -> list[int]:
    """the-stack-dedup: every document whose real similarity to all kept before it stays below the threshold."""
    kept: list[int] = []
    for member in group:
        if all(similarity(member, other) < threshold for other in kept):
            kept.append(member)
    return kept
