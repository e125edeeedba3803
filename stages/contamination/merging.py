"""From what the shards found to what each training node holds of each item. The order of shards decides, not who
scanned them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from stages.contamination.index import Table, Words
from stages.contamination.scan import IDS
from stages.core.reading import open_file
from stages.lib.data.workers import Result
from stages.lib.formats.overlap import Match


@dataclass
class NodeFinds:
    """What one training node holds. runs, docs, documents: runs of both tables, in how many documents, and the first
    of these; places: words of items in a span; longest: of an item, words of the longest span and its document.
    """

    runs: np.ndarray
    docs: np.ndarray
    documents: list[str]
    places: np.ndarray
    longest: dict[int, tuple[int, str]] = field(default_factory=dict)


def gather(results: Sequence[Result]) -> NodeFinds:
    """What the tasks found in all shards of one node, in order."""
    runs, docs, documents, places = [], [], [], []
    longest: dict[int, tuple[int, str]] = {}
    for result in results:
        with open_file(result.file("found.npz")) as stream, np.load(stream) as archive:
            shard = {name: archive[name] for name in archive.files}
        with open_file(result.file(IDS)) as stream:
            ids = json.load(stream)
        runs.append(shard["runs"])
        docs.append(shard["docs"])
        documents += [ids[str(d)] for d in shard["first"].tolist()]
        places.append(shard["places"])
        for item, length, document in zip(*(shard[n].tolist() for n in ("items", "longest", "where")), strict=True):
            if length > longest.get(item, (0, ""))[0]:
                longest[item] = (length, ids[str(document)])
    if not results:
        return NodeFinds(np.empty(0, np.int64), np.empty(0, np.int64), [], np.empty(0, np.int64))
    kept, first, inverse = np.unique(np.concatenate(runs), return_index=True, return_inverse=True)
    counts = np.bincount(inverse, np.concatenate(docs), len(kept)).astype(np.int64)
    return NodeFinds(kept, counts, [documents[n] for n in first.tolist()], np.unique(np.concatenate(places)), longest)


def common_runs(finds: Mapping[str, NodeFinds], most: int | None) -> np.ndarray:
    """Runs that more than `most` documents of all nodes hold, sorted."""
    if most is None or not finds:
        return np.empty(0, np.int64)
    runs = np.concatenate([f.runs for f in finds.values()])
    kept, inverse = np.unique(runs, return_inverse=True)
    counts = np.bincount(inverse, np.concatenate([f.docs for f in finds.values()]), len(kept))
    return kept[counts > most]


def places_of(runs: np.ndarray, tables: tuple[Table, Table]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every place where one of the runs begins: (place, words, which of `runs`)."""
    rows = [(np.empty(0, np.int64),) * 3]
    offset = 0
    for table in tables:
        which = np.flatnonzero((runs >= offset) & (runs < offset + len(table.hashes)))
        run = runs[which] - offset
        counts = table.offsets[run + 1] - table.offsets[run]
        inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        places = table.places[np.repeat(table.offsets[run], counts) + inside]
        rows.append((places, np.repeat(table.lengths[run], counts).astype(np.int64), np.repeat(which, counts)))
        offset += len(table.hashes)
    return tuple(np.concatenate(column) for column in zip(*rows, strict=True))  # type: ignore[return-value]


def run_matches(
    node: str, finds: NodeFinds, common: np.ndarray, words: Words, tables: tuple[Table, Table]
) -> Iterator[tuple[int, Match]]:
    """(item, match) of each item that a node holds a run of which is not common, by item."""
    kept = np.flatnonzero(~np.isin(finds.runs, common))
    places, lengths, which = places_of(finds.runs[kept], tables)
    change = np.zeros(len(words.hashes) + 1, np.int32)
    np.add.at(change, places, 1)
    np.add.at(change, places + lengths, -1)
    covered = np.cumsum(change[:-1]) > 0
    begins = dict(zip(places.tolist(), kept[which].tolist(), strict=True))
    for item in np.unique(words.item[places]).tolist():
        low, high = words.items[item : item + 2].tolist()
        spans = spans_of(covered[low:high])
        start, end = max(spans, key=lambda span: span[1] - span[0])
        document = finds.documents[begins[low + start]]
        yield item, _match(node, spans, high - low, end - start, document)


def span_matches(node: str, finds: NodeFinds, words: Words) -> Iterator[tuple[int, Match]]:
    """(item, match) of each item that a node holds a span of, by item."""
    covered = np.zeros(len(words.hashes), np.bool_)
    covered[finds.places] = True
    for item, (length, document) in sorted(finds.longest.items()):
        low, high = words.items[item : item + 2].tolist()
        yield item, _match(node, spans_of(covered[low:high]), high - low, length, document)


def _match(node: str, spans: list[tuple[int, int]], words: int, longest: int, document: str) -> Match:
    share = sum(high - low for low, high in spans) / words
    return Match(node=node, fraction=round(share, 4), longest=longest, spans=tuple(spans), document=document)


def spans_of(covered: np.ndarray) -> list[tuple[int, int]]:
    """(first, one after the last) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], covered, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
