"""All runs of words of all evaluation items in one hash table, which a scan of the training data looks up.

A *place* is a word of an item, numbered over all items. A *run* is a text that begins at one place or more; its hash is
that of its first `anchor` words. A table has a filter of bits in front, which nearly every word of the training data
gets no further than. What the filter and the hash let through is compared with the item's text: a 64-bit hash alone
never makes a match.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stages.lib.data.numba_jit import njit
from stages.lib.data.word_hashes import BASE, hash_words, reread, same_word, tables

FILTER_BITS = 16
"""Bits of the filter for each run: a sixteenth of what is not there gets through."""
NONE = np.int32(-1)


class Words(NamedTuple):
    """The words of all items."""

    text: np.ndarray
    """[bytes], uint8: the items' folded text, one after another."""
    hashes: np.ndarray
    """[places], uint64."""
    starts: np.ndarray
    """[places], int64: first byte of each word; `ends`: the byte after its last."""
    ends: np.ndarray
    items: np.ndarray
    """[items + 1], int64: the first place of each item."""
    item: np.ndarray
    """[places], int32: whose word it is."""


class Table(NamedTuple):
    """The runs that are looked up by the hash of their first `anchor` words."""

    filter: np.ndarray
    """[1 << n], uint64: a bit for each of the upper bits of a hash."""
    slots: np.ndarray
    """[1 << n], int32: number of the first run of a hash, open addressing; NONE: free."""
    hashes: np.ndarray
    """[runs], uint64, ascending: equal ones lie side by side."""
    lengths: np.ndarray
    """[runs], int32: words of each."""
    offsets: np.ndarray
    """[runs + 1], int64: where the places of a run begin in `places`."""
    places: np.ndarray
    """[..], int64: where the runs begin."""


def read_words(texts: Iterable[str]) -> Words:
    """The words of all items, in order."""
    plain = tables()[1]
    parts, words_by_item, offset = [], [], 0
    for text in texts:
        data = reread(text)
        source = np.frombuffer(data, np.uint8)
        hashes, starts, ends = buffers(len(data))
        count, _ = hash_words(source, 0, len(source), plain, hashes, starts, ends)
        parts.append(source)
        words_by_item.append((hashes[:count].copy(), starts[:count] + offset, ends[:count] + offset))
        offset += len(source)
    counts = np.array([len(hashes) for hashes, _, _ in words_by_item], np.int64)
    hashes, starts, ends = (
        np.concatenate([each[n] for each in words_by_item]) if words_by_item else np.empty(0, kind)
        for n, kind in enumerate((np.uint64, np.int64, np.int64))
    )
    arrays = (
        np.concatenate(parts) if parts else np.empty(0, np.uint8), hashes, starts, ends,
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.repeat(np.arange(len(counts), dtype=np.int32), counts),
    )  # fmt: skip
    return Words(*map(read_only, arrays))


def buffers(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `hash_words` writes into, for a text of `size` bytes. What is not written takes no memory."""
    return np.empty(size + 1, np.uint64), np.empty(size + 1, np.int64), np.empty(size + 1, np.int64)


def make_table(words: Words, anchor: int, shortest: int, longest: int | None) -> Table:
    """The table of all runs of `anchor` words of items of at least `shortest` words; or, with `longest`, of the items
    of `shortest` to `longest` words as a whole, by their first `anchor` words.
    """
    sizes = np.diff(words.items)
    chosen = np.flatnonzero((sizes >= shortest) & (sizes <= longest if longest is not None else True))
    if longest is not None:
        places, lengths = words.items[chosen], sizes[chosen].astype(np.int32)
    else:
        counts = sizes[chosen] - anchor + 1
        inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        places = np.repeat(words.items[chosen], counts) + inside
        lengths = np.full(len(places), anchor, np.int32)
    hashes = np.empty(len(places), np.uint64)
    run_hashes(words.hashes, places, anchor, hashes)
    order = np.lexsort((places, lengths, hashes))
    hashes, lengths, places = hashes[order], lengths[order], places[order].astype(np.int64)
    run = np.empty(len(places), np.int64)
    runs = number_runs(hashes, lengths, places, words, tables()[1], run)
    order = np.argsort(run, kind="stable")  # texts that differ under one hash may have been mixed
    hashes, lengths, places = hashes[order], lengths[order], places[order]
    first = np.searchsorted(run[order], np.arange(runs))
    slots = max(2, 2 * runs)
    table = Table(
        filter=np.zeros(1 << max(4, (max(1, FILTER_BITS * runs) - 1).bit_length() - 6), np.uint64),
        slots=np.full(1 << (slots - 1).bit_length(), NONE, np.int32),
        hashes=hashes[first],
        lengths=lengths[first],
        offsets=np.append(first, len(places)).astype(np.int64),
        places=places,
    )
    _fill(table.hashes, table.filter, table.slots)
    return table


@njit
def run_hashes(words, places, length, out):
    """Polynomial hash of the `length` words from each place on.

    words: [places of all items] uint64; places: [n] int64; out: [n] uint64.
    """
    for n in range(places.shape[0]):
        value = np.uint64(0)
        for i in range(places[n], places[n] + length):
            value = value * BASE + words[i]
        out[n] = value


@njit
def same_run(source, starts, ends, at, table, words, place, length, plain):
    """Whether `length` words of a text, from word `at` on, are those of the items from `place` on.

    source: [bytes] uint8; starts, ends: [words of the text] int64; table, plain: [0x110000] uint32 (`tables`).
    """
    for i in range(length):
        if not same_word(
            source,
            starts[at + i],
            ends[at + i],
            table,
            words.text,
            words.starts[place + i],
            words.ends[place + i],
            plain,
        ):
            return False
    return True


@njit
def number_runs(hashes, lengths, places, words, plain, run):
    """Give every place the number of its text, by order of hash and length; returns how many texts there are.

    hashes: [n] uint64 and lengths: [n] int32, ascending; places, run: [n] int64; plain: [0x110000] uint32.
    """
    runs = 0
    begin = 0
    while begin < places.shape[0]:
        end = begin
        while end < places.shape[0] and hashes[end] == hashes[begin] and lengths[end] == lengths[begin]:
            run[end] = -1
            end += 1
        for i in range(begin, end):
            if run[i] >= 0:
                continue
            run[i] = runs
            for j in range(i + 1, end):
                if run[j] < 0 and same_run(
                    words.text, words.starts, words.ends, places[i], plain, words, places[j], lengths[i], plain
                ):
                    run[j] = runs
            runs += 1
        begin = end
    return runs


@njit
def slot_shift(slots):
    """What a uint64 hash is shifted by to give its place among so many (a power of two, 2 or more)."""
    shift, size = np.uint64(64), slots
    while size > 1:
        shift, size = shift - np.uint64(1), size >> 1
    return shift


@njit
def _fill(hashes, bits, slots):
    shift, mask = slot_shift(slots.shape[0]), slots.shape[0] - 1
    filter_shift = slot_shift(bits.shape[0]) - np.uint64(6)
    for run in range(hashes.shape[0]):
        if run > 0 and hashes[run] == hashes[run - 1]:
            continue
        bit = hashes[run] >> filter_shift
        bits[np.int64(bit >> np.uint64(6))] |= np.uint64(1) << (bit & np.uint64(63))
        slot = np.int64(hashes[run] >> shift)
        while slots[slot] >= 0:
            slot = (slot + 1) & mask
        slots[slot] = run


@njit
def find(value, table, shift):
    """Number of the first run with this uint64 hash; -1: there is none. shift: `slot_shift` of the slots."""
    mask = table.slots.shape[0] - 1
    slot = np.int64(value >> shift)
    while table.slots[slot] >= 0:
        run = table.slots[slot]
        if table.hashes[run] == value:
            return np.int64(run)
        slot = (slot + 1) & mask
    return np.int64(-1)


def save(folder: Path, name: str, arrays: Words | Table) -> None:
    """Write the arrays, a file each."""
    for field, array in zip(arrays._fields, arrays, strict=True):
        np.save(folder / f"{name}.{field}.npy", array)


def load(paths: Mapping[str, Path], name: str, kind: type[Words] | type[Table]) -> Words | Table:
    """The arrays as mapped files: processes of one machine share their memory."""
    return kind(*(_mapped(paths[f"{name}.{field}.npy"]) for field in kind._fields))


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, mmap_mode="r"))
    except ValueError:  # an empty file cannot be mapped
        return read_only(np.load(path))


def read_only(array: np.ndarray) -> np.ndarray:
    """The array, never written again: compiled functions then have one type of it to know."""
    array.flags.writeable = False
    return array
