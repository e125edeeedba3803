"""Exact substrings that occur before, cut out by suffix array (Lee et al. 2022, section 4.1; DCLM's alternative to
BFF).

The suffix array of a run of documents is sorted; where two neighbours share `length` bytes or more, the later place in
the text is a repetition. Of a repeated substring the first occurrence stays and all others go, cut at whole characters.
Documents
are looked at in groups of some megabytes, in order: what repeats across two groups stays.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.core.artifacts import FileEntry
from stages.dedup.bloom_pass import Kept
from stages.dedup.funnel import Funnel
from stages.lib.data.numba_jit import njit
from stages.lib.data.workers import Pool, Result
from stages.lib.formats.corpus import read_parts
from stages.lib.formats.documents import DocumentWriter, text_buffer, text_bytes

JOINT = 0xFF
"""Between two texts: a byte that no UTF-8 holds."""


@njit
def _repeated(source, suffixes, shared, length, gone):
    """Mark in `gone` every byte of a repetition: of each run of suffixes that share `length` bytes, all that the first
    place does not overlap. A run whose bytes hold a joint is none: it would reach over the end of a text."""
    start, count = 0, suffixes.shape[0]
    while start < count:
        stop, first = start + 1, suffixes[start]
        while stop < count and shared[stop - 1] >= length:
            first = min(first, suffixes[stop])
            stop += 1
        within = stop - start > 1
        if within:
            for i in range(first, first + length):
                within = within and source[i] != JOINT
        if within:
            for i in range(start, stop):
                if suffixes[i] >= first + length:
                    gone[suffixes[i]] = 1
        start = stop
    left = 0
    for i in range(count):  # from the first bytes of the repetitions to all their bytes
        if gone[i]:
            left = length
        gone[i] = 1 if left > 0 else 0
        left -= 1


@njit
def _whole_characters(source, gone):
    """Take back what would cut a character in two: a character goes only when all its bytes do."""
    i, count = 0, source.shape[0]
    while i < count:
        stop = i + 1
        while stop < count and source[stop] & np.uint8(0xC0) == 0x80:
            stop += 1
        whole = True
        for k in range(i, stop):
            whole = whole and gone[k] == 1
        for k in range(i, stop):
            gone[k] = 1 if whole else 0
        i = stop


def repetitions(source: np.ndarray, length: int) -> np.ndarray:
    """Which bytes repeat a substring of at least `length` that came before: [bytes], bool. JOINT parts texts."""
    from pydivsufsort import divsufsort, kasai

    gone = np.zeros(len(source), np.uint8)
    if len(source) > length:
        suffixes = divsufsort(source)
        _repeated(source, suffixes, kasai(source, suffixes), length, gone)
        _whole_characters(source, gone)
    return gone.astype(bool)


def cut_group(folder: Path, parts: list[dict[str, Any]], length: int, together: int) -> Any:
    """Cut repetitions out of the documents of some parts (`FileEntry.value`), `together` bytes of text at a time."""
    funnel = Funnel()
    held: list[pa.RecordBatch] = []
    size = 0
    with DocumentWriter(folder) as writer:
        for batch in read_parts(map(FileEntry.model_validate, parts), rows=4096):
            more = text_bytes(batch.column("text"))
            if held and size + more > together:
                _cut_batches(held, length, writer, funnel)
                held, size = [], 0
            held.append(batch)
            size += more
        if held:
            _cut_batches(held, length, writer, funnel)
    if not writer.documents:
        (folder / "part-00000.parquet").unlink()
    return {"funnel": funnel.value()}


def _cut_batches(batches: list[pa.RecordBatch], length: int, writer: DocumentWriter, funnel: Funnel) -> None:
    """Cut repetitions out of these documents, looked at together."""
    batch = pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
    text, ends = text_buffer(batch.column("text"))
    sizes = np.diff(ends)
    place = np.concatenate([[0], np.cumsum(sizes + 1)])  # of each text, with a joint after it
    source = np.full(int(place[-1]), JOINT, np.uint8)
    inside = np.ones(len(source), bool)
    inside[place[1:] - 1] = False
    source[inside] = text[ends[0] : ends[-1]]
    gone = repetitions(source, length)
    cuts = np.add.reduceat(gone, place[:-1], dtype=np.int64)
    left_ends = np.concatenate([[0], np.cumsum(sizes - cuts)])
    left = source[inside & ~gone]
    blank = np.array([not left[a:b].tobytes().decode().strip() for a, b in itertools.pairwise(left_ends)], bool)
    changed = (cuts > 0) & ~blank
    funnel.count("repeated substrings", int(changed.sum()), int(cuts[changed].sum()))
    funnel.count("nothing but repeated substrings", int(blank.sum()), int(sizes[blank].sum()))
    column = batch.schema.get_field_index("text")
    texts = pa.LargeStringArray.from_buffers(len(sizes), pa.py_buffer(left_ends), pa.py_buffer(left))
    kept = batch.set_column(column, batch.schema.field(column), texts).filter(pa.array(~blank))
    writer.add_batch(kept)
    funnel.keep(kept)


def cut(
    pool: Pool,
    shards: Sequence[Kept],
    length: int,
    together: int,
    funnel: Funnel,
    progress: Callable[[float, float, str], None] | None = None,
) -> list[Result]:
    """Cut repetitions out of the documents of the shards; what is left."""
    groups: list[list[dict[str, Any]]] = [[]]
    held = 0
    for kept in shards:
        if groups[-1] and held + kept.text_bytes > together:
            groups.append([])
            held = 0
        groups[-1] += [part.value() for part in kept.parts]
        held += kept.text_bytes
    results = pool.map(
        "substrings",
        cut_group,
        [{"parts": group, "length": length, "together": together} for group in groups],
        progress,
    )
    funnel.restart()
    for result in results:
        funnel.add(result.value["funnel"])
    return results
