"""Clusters of documents that pairs connect: a union-find over document numbers whose roots are the lowest members.

`splice` also keeps the members of each tree in a ring. Two rings become one by exchanging two links, at the pair that
joined them: a walk around is an order in which documents that pairs connect are mostly neighbours, whatever the size of
the cluster.
"""

from __future__ import annotations

import numpy as np

from stages.lib.data.numba_jit import njit


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


def clusters(parent: np.ndarray) -> np.ndarray:
    """Rows (first document, document) of all trees of more than one member, sorted: [rows, 2], uint32."""
    flatten(parent)
    joined = np.flatnonzero(parent != np.arange(len(parent), dtype=parent.dtype))
    members = np.union1d(joined, parent[joined]).astype(np.uint32)
    firsts = parent[members].astype(np.uint32)
    order = np.lexsort((members, firsts))
    return np.stack([firsts[order], members[order]], axis=1)


def flatten(parent: np.ndarray) -> None:
    """Point every node at its root. A parent is always lower, so one ascending pass, in blocks, until nothing moves."""
    while True:
        above = parent[parent]
        if np.array_equal(above, parent):
            return
        parent[:] = above
