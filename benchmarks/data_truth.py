"""Near-duplicates by Python's own sets, the truth that `benchmarks.data` measures by."""

from __future__ import annotations

import string
from itertools import pairwise
from pathlib import Path

import numpy as np

from stages.core.artifacts import FileEntry
from stages.dedup import lsh
from stages.dedup.minhash import Signer
from stages.lib.data.spills import read_files
from stages.lib.formats.documents import read_batches, text_buffer

PUNCTUATION = str.maketrans("", "", string.punctuation)


def batches(corpus: Path, documents: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The first texts of the corpus, as buffers."""
    buffers, left = [], documents
    for batch in read_batches(corpus, ["text"]):
        part = batch.slice(0, left)
        if part.num_rows:
            buffers.append(text_buffer(part.column("text")))
        left -= part.num_rows
    return buffers


class Truth:
    """Exact similarities of documents, by Python's own sets and normalization: nothing of ours that is measured."""

    def __init__(self, corpus: Path, documents: int) -> None:
        self.texts = [s[a:b].tobytes().decode() for s, e in batches(corpus, documents) for a, b in pairwise(e)]
        self.clean = [" ".join(text.lower().translate(PUNCTUATION).split()) for text in self.texts]
        self.long = [len(clean) - clean.count(" ") >= 200 for clean in self.clean]
        self._sets: dict[int, frozenset[str]] = {}

    def grams(self, document: int) -> frozenset[str]:
        """Character 13-grams."""
        if document not in self._sets:
            if len(self._sets) > 4000:
                self._sets.pop(next(iter(self._sets)))
            clean = self.clean[document]
            self._sets[document] = frozenset(clean[i : i + 13] for i in range(max(1, len(clean) - 12)))
        return self._sets[document]

    def similar(self, a: int, b: int) -> bool:
        """Whether two documents reach 0.8."""
        one, other = self.grams(a), self.grams(b)
        return len(one & other) >= 0.8 * len(one | other)

    def pairs(self, corpus: Path) -> set[tuple[int, int]]:
        """Pairs at 0.8 or more among documents that pass the short filter, of those that share one of 32 bands of 4
        rows (a pair at 0.8 shares none with probability 5e-8; a bucket of over 16 gives its star and chain).
        """
        keys = np.concatenate(
            [Signer("characters", 13, 128, 32, 4, 99).sign(*part)[0] for part in batches(corpus, len(self.texts))]
        )
        numbers = np.repeat(np.arange(len(keys), dtype=np.uint32), 32)
        order = np.argsort(keys.ravel(), kind="stable")
        rough = lsh.bucket_pairs(keys.ravel()[order], numbers[order]).tolist()
        split = ((pair >> 32, pair & 0xFFFFFFFF) for pair in rough)
        return {(a, b) for a, b in split if self.long[a] and self.long[b] and self.similar(a, b)}


def same_cluster(pairs: set[tuple[int, int]], edges: np.ndarray, documents: int) -> float:
    """Share of the true pairs whose documents the edges connect."""
    from stages.dedup.union_find import find, unite

    parent = np.arange(documents, dtype=np.uint32)
    unite(parent, edges[:, 0].astype(np.uint32), edges[:, 1].astype(np.uint32))
    return sum(find(parent, a) == find(parent, b) for a, b in pairs) / max(1, len(pairs))


def equal_texts(texts: list[str]) -> np.ndarray:
    """Each document with the first of equal content: what the exact step removes."""
    first: dict[str, int] = {}
    return np.array([(first.setdefault(text, n), n) for n, text in enumerate(texts)], np.int64)


def edges_of(root: Path) -> np.ndarray:
    """The verified pairs that a run left in its scratch folder."""
    entries = [
        FileEntry(path=path.name, size=path.stat().st_size, sha256="0" * 64, object=str(path.absolute()))
        for path in sorted(root.glob("**/edges-*"))
    ]
    joined_pairs = np.concatenate([np.empty(0, np.uint64), *(r.columns[0] for _, r in read_files(entries, 0, 1))])
    return np.stack([joined_pairs >> np.uint64(32), joined_pairs & np.uint64(0xFFFFFFFF)], axis=1).astype(np.int64)
