"""One pass over the training data: which runs of the evaluation items each document holds.

A shard's task looks every word's run up, and leaves what it found: for `gpt3` the runs, in how many documents each
occurs, and the first of these; for `llama2` the places that matching spans cover, and each item's longest span. What a
task holds besides one batch of documents grows with the items, never with the training data.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np

from stages.contamination.index import Table, Words, buffers, find, load, same_run, slot_shift
from stages.contamination.training_texts import read_texts
from stages.core.artifacts import FileEntry
from stages.core.reading import local_file
from stages.lib.data.numba_jit import njit
from stages.lib.data.word_hashes import BASE, hash_words, reread, same_word, tables
from stages.lib.formats.documents import text_buffer

Index = tuple[Words, tuple[Table, Table]]
"""The words of all items, and the tables of their long and short runs."""
IDS = "ids.json"
HOLDS, NEEDS_PYTHON, MORE = 1, 2, 3
"""What became of a document, uint8; 0: it holds nothing."""


@njit
def _power(length):
    power = np.uint64(1)
    for _ in range(length):
        power *= BASE
    return power


@njit
def _look_up(source, starts, ends, hashes, count, mapping, words, plain, table, anchor, runs, ats, tally):
    """Runs of the table that a document holds, and the word that each begins with; returns how many. tally[1] counts
    equal hashes of texts that differ. `runs` and `ats` may be too short: then -1 (lengthen them, and look up again).
    """
    hits = 0
    if count < anchor or table.hashes.shape[0] == 0:
        return hits
    power, shift = _power(anchor), slot_shift(table.slots.shape[0])
    filter_shift = slot_shift(table.filter.shape[0]) - np.uint64(6)
    value = np.uint64(0)
    for i in range(anchor - 1):
        value = value * BASE + hashes[i]
    old = np.uint64(0)
    for i in range(anchor - 1, count):
        value = value * BASE + hashes[i] - power * old
        at = i - anchor + 1
        old = hashes[at]
        bit = value >> filter_shift
        if not (table.filter[np.int64(bit >> np.uint64(6))] >> (bit & np.uint64(63))) & np.uint64(1):
            continue
        run = find(value, table, shift)
        if run < 0:
            continue
        while run < table.hashes.shape[0] and table.hashes[run] == value:
            length = table.lengths[run]
            if at + length <= count:
                place = table.places[table.offsets[run]]
                if same_run(source, starts, ends, at, mapping, words, place, length, plain):
                    if hits == runs.shape[0]:
                        return -1
                    runs[hits], ats[hits] = run, at
                    hits += 1
                elif length == anchor:
                    tally[1] += 1
            run += 1
    return hits


@njit
def _count_runs(runs, hits, document, docs, first, last):
    """Count each run once for the document."""
    for n in range(hits):
        run = runs[n]
        if last[run] != document:
            last[run] = document
            docs[run] += 1
            if docs[run] == 1:
                first[run] = document


@njit
def _same(source, starts, ends, hashes, at, mapping, words, place, plain):
    """Whether word `at` of a document is the one at a place."""
    return hashes[at] == words.hashes[place] and same_word(
        source, starts[at], ends[at], mapping, words.text, words.starts[place], words.ends[place], plain
    )


@njit
def _spans(
    source, starts, ends, hashes, count, mapping, words, plain, table, runs, ats, hits, document, rule, out
):  # fmt: skip
    """Extend every anchor to its longest span, and mark the words in it that are the same.

    An anchor whose word before is the same, too, is left out: the span from there holds this one, since no word that
    differs lies between. rule: (words of a span at least, words that may differ). out: (covered [places], longest
    [items], where [items]).
    """
    covered, longest, where = out
    least, skips = rule
    for n in range(hits):
        run, at = runs[n], ats[n]
        anchor = np.int64(table.lengths[run])
        for p in range(table.offsets[run], table.offsets[run + 1]):
            place = table.places[p]
            item = words.item[place]
            inside = at > 0 and place > words.items[item]
            if inside and _same(source, starts, ends, hashes, at - 1, mapping, words, place - 1, plain):
                continue
            room = min(words.items[item + 1] - place, count - at)
            missed, length, i = 0, anchor, anchor
            while i < room and missed <= skips:
                if _same(source, starts, ends, hashes, at + i, mapping, words, place + i, plain):
                    length = i + 1
                else:
                    missed += 1
                i += 1
            if length < least:
                continue
            if length > longest[item]:
                longest[item], where[item] = length, document
            for i in range(length):
                if not covered[place + i]:
                    covered[place + i] = i < anchor or _same(
                        source, starts, ends, hashes, at + i, mapping, words, place + i, plain
                    )


@njit
def scan_batch(text, begins, first_number, mapping, words, plain, tables_of, anchors, rule, space, state, out, tally):
    """Look up all documents of a batch. text: uint8; begins: [documents + 1].

    tables_of, anchors: two tables, and the words of their anchors. rule: (words of a span at least, words that may
    differ; -1: runs are counted, spans not sought). space: (hashes, starts, ends, runs, ats). state: (docs, first,
    last) [runs of both tables], (covered, longest, where). out: [documents], uint8: HOLDS; or, left to the caller,
    NEEDS_PYTHON, and MORE than `space` has room for.
    """
    hashes, starts, ends, runs, ats = space
    docs, first, last, covered, longest, where = state
    for d in range(begins.shape[0] - 1):
        count, python = hash_words(text, begins[d], begins[d + 1], mapping, hashes, starts, ends)
        if python:
            out[d] = NEEDS_PYTHON
            continue
        number, offset, any_found = first_number + d, 0, False
        for n in range(2):
            table = tables_of[n]
            hits = _look_up(
                text, starts, ends, hashes, count, mapping, words, plain, table, anchors[n], runs, ats, tally
            )
            if hits < 0:
                out[d] = MORE
                break
            if hits > 0:
                any_found = True
                if rule[1] < 0:
                    for k in range(hits):
                        runs[k] += offset
                    _count_runs(runs, hits, number, docs, first, last)
                else:
                    _spans(
                        text, starts, ends, hashes, count, mapping, words, plain, table, runs, ats, hits, number, rule,
                        (covered, longest, where),
                    )  # fmt: skip
            offset += table.hashes.shape[0]
        if out[d] == MORE:
            continue
        tally[0] += count
        out[d] = HOLDS if any_found else 0


class Scanner:
    """Scans batches of texts with an index, and keeps what was found. ids: of documents that hold
    something.
    """

    def __init__(self, index: Index, anchors: tuple[int, int], least: int, skips: int | None) -> None:
        self.words, self.tables = index
        self.anchors, self.rule = anchors, (least, -1 if skips is None else skips)
        runs = sum(len(table.hashes) for table in self.tables) if skips is None else 0
        places, items = (0, 0) if skips is None else (len(self.words.hashes), len(self.words.items) - 1)
        self.docs, self.first, self.last = (
            np.zeros(runs, np.int32),
            np.zeros(runs, np.int64),
            np.full(runs, -1, np.int64),
        )
        self.covered = np.zeros(places, np.bool_)
        self.longest, self.where = np.zeros(items, np.int32), np.zeros(items, np.int64)
        self.tally = np.zeros(2, np.int64)
        self.documents = self.bytes = 0
        self.ids: dict[int, str] = {}
        self._space = (*buffers(1 << 16), np.empty(1 << 12, np.int64), np.empty(1 << 12, np.int64))

    def add(self, ids: list[str], column: Any) -> None:
        """Scan a batch of texts."""
        text, begins = text_buffer(column)
        out = np.zeros(len(ids), np.uint8)
        self._scan(text, begins, out, self.documents, tables()[0])
        for d in np.flatnonzero(out == NEEDS_PYTHON).tolist():
            data = np.frombuffer(reread(column[d].as_py()), np.uint8)
            alone = np.zeros(1, np.uint8)
            self._scan(data, np.array([0, len(data)]), alone, self.documents + d, tables()[1])
            out[d] = alone[0]
        for d in np.flatnonzero(out == HOLDS).tolist():
            self.ids[self.documents + d] = ids[d]
        self.documents += len(ids)
        self.bytes += int(begins[-1] - begins[0]) if len(ids) else 0

    def _scan(self, text: np.ndarray, begins: np.ndarray, out: np.ndarray, number: int, mapping: np.ndarray) -> None:
        size = int(np.diff(begins).max(initial=0))
        if size >= len(self._space[0]):
            self._space = (*buffers(2 * size), *self._space[3:])
        scan_batch(
            text, begins, number, mapping, self.words, tables()[1], self.tables, self.anchors, self.rule, self._space,
            (self.docs, self.first, self.last, self.covered, self.longest, self.where), out, self.tally,
        )  # fmt: skip
        for d in np.flatnonzero(out == MORE).tolist():
            self._space = (*self._space[:3], *(np.empty(4 * len(self._space[3]), np.int64) for _ in range(2)))
            alone = np.zeros(1, np.uint8)
            self._scan(text, begins[d : d + 2], alone, number + d, mapping)
            out[d] = alone[0]


@functools.lru_cache(maxsize=1)
def _index(files: str) -> Index:
    """The index, once a process. files: JSON of their entries."""
    with ExitStack() as stack:
        paths = {}
        for row in json.loads(files):
            entry = FileEntry.model_validate(row)
            paths[entry.path] = stack.enter_context(local_file(entry))
        return load_index(paths)  # mapped: the files may go


def load_index(paths: Mapping[str, Path]) -> Index:
    """The index from its files."""
    first, second = (cast(Table, load(paths, name, Table)) for name in ("runs", "short"))
    return cast(Words, load(paths, "words", Words)), (first, second)


def scan(
    folder: Path, shard: dict[str, Any], kind: str, index: list[dict[str, Any]], rule: dict[str, Any]
) -> dict[str, int]:
    """Task: scan one shard, and leave what was found; the value counts documents, bytes, words and equal hashes of
    texts that differ.
    """
    scanner = Scanner(_index(json.dumps(index)), tuple(rule["anchors"]), rule["least"], rule["skips"])
    for ids, column in read_texts(kind, shard):
        scanner.add(ids, column)
    runs, items, places = np.flatnonzero(scanner.docs), np.flatnonzero(scanner.longest), np.flatnonzero(scanner.covered)
    np.savez(
        folder / "found.npz",
        runs=runs, docs=scanner.docs[runs], first=scanner.first[runs],
        places=places, items=items, longest=scanner.longest[items], where=scanner.where[items],
    )  # fmt: skip
    named = np.unique(np.concatenate([scanner.first[runs], scanner.where[items]])).tolist()
    (folder / IDS).write_text(json.dumps({str(d): scanner.ids[d] for d in named}), encoding="utf-8")
    return {
        "documents": scanner.documents,
        "bytes": scanner.bytes,
        "words": int(scanner.tally[0]),
        "equal_hashes": int(scanner.tally[1]),
    }
