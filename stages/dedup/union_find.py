"""Clusters of documents that pairs connect: a union-find over document numbers whose roots are the lowest members.

`splice` also keeps the members of each tree in a ring. Two rings become one by exchanging two links, at the pair that
joined them: a walk around is an order in which documents that pairs connect are mostly neighbours, whatever the size of
the cluster.
"""

from __future__ import annotations

import numpy as np

from stages.lib.data.numba_jit import njit

LARGE = np.uint32(1 << 31)
"""Marks the slices of a tree that is larger than a slice."""
TOGETHER = 1 << 22
"""Documents that are looked at together."""


@njit
def find(parent, node):
    """The root of a node; paths are halved on the way.

    parent: [documents], any integers; every parent is at most its child.
    """
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@njit
def unite_two(parent, first, second):
    """Join two trees; the root of a tree is its lowest member.

    parent: see `find`.
    """
    one, other = find(parent, first), find(parent, second)
    if one < other:
        parent[other] = one
    else:
        parent[one] = other


@njit
def unite(parent, firsts, seconds):
    """Join the trees of every pair.

    parent: see `find`; firsts, seconds: [pairs], integers.
    """
    for i in range(firsts.shape[0]):
        unite_two(parent, firsts[i], seconds[i])


@njit
def splice(parent, following, firsts, seconds):
    """As `unite`; and `following` leads around the documents of each tree, where those that were joined early are
    neighbours.

    parent: see `find`; following: [documents], integers, each its own at first; firsts, seconds: [pairs], integers.
    """
    for i in range(firsts.shape[0]):
        one, other = firsts[i], seconds[i]
        if find(parent, one) != find(parent, other):
            unite_two(parent, one, other)
            following[one], following[other] = following[other], following[one]


@njit
def around(parent, following):
    """The documents of all trees of more than one, tree by tree, each once around: uint32.

    parent, following: see `splice`, after it.
    """
    count = 0
    for d in range(parent.shape[0]):
        count += int(following[d] != d)
    order, count = np.empty(count, np.uint32), 0
    for root in range(parent.shape[0]):
        if parent[root] == root and following[root] != root:
            order[count] = root
            count += 1
            d = following[root]
            while d != root:
                order[count] = d
                count += 1
                d = following[d]
    return order


@njit
def cut_slices(parent, order, most, out):
    """Cut the documents of all trees (`around`) into slices of about `most`, trees whole; how many slices. A tree of
    more gets slices of its own, marked LARGE.

    parent: see `find`; order: [documents], of `around`. Written: out [documents] uint32, the slice of each.
    """
    number = held = i = 0
    while i < order.shape[0]:
        root, stop = find(parent, order[i]), i + 1
        while stop < order.shape[0] and find(parent, order[stop]) == root:
            stop += 1
        if held and held + stop - i > most:
            number, held = number + 1, 0
        if stop - i <= most:
            out[i:stop] = number
            held += stop - i
        else:
            for k in range(i, stop):
                out[k] = LARGE | np.uint32(number + (k - i) // most)
            number += (stop - i - 1) // most + 1
        i = stop
    return number + int(held > 0)


def clusters(parent: np.ndarray) -> np.ndarray:
    """Rows (first document, document) of all trees of more than one member, sorted: [rows, 2], uint32."""
    flatten(parent)
    joined = [
        start + np.flatnonzero(parent[start : start + TOGETHER] != np.arange(start, min(start + TOGETHER, len(parent))))
        for start in range(0, len(parent), TOGETHER)
    ]
    rest = np.concatenate([np.empty(0, np.int64), *joined])
    members = np.union1d(rest, parent[rest]).astype(np.uint32)
    firsts = parent[members].astype(np.uint32)
    order = np.lexsort((members, firsts))
    return np.stack([firsts[order], members[order]], axis=1)


@njit
def flatten(parent):
    """Point every node at its root. A parent is never higher than its child: one ascending pass.

    parent: see `find`.
    """
    for node in range(parent.shape[0]):
        parent[node] = parent[parent[node]]
