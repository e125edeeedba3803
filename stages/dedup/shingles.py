"""From UTF-8 text to the hashes of its shingles, a chunk at a time: the memory is the chunk's, whatever the document's
size.

A recipe's kind of shingle decides what is hashed: n-grams of characters or of words of the normalized text, or the
tokens of source code. MinHash takes 32 bits of each hash (`fold`), the exact similarity all 64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from stages.dedup.normalization import CODE, SPACE, WORD, fill, normalize, table
from stages.lib.data.numba_jit import fmix64, njit

ShingleKind = Literal["characters", "words", "token set"]


@dataclass(frozen=True)
class SimilarityRule:
    """When two texts count as duplicates: shingles of `width` characters or words (a token set has 1), and the Jaccard
    similarity of their sets from which on they do.
    """

    kind: ShingleKind
    width: int
    threshold: float


KINDS: dict[ShingleKind, int] = {"characters": 0, "words": 1, "token set": 2}
CHUNK = 4096
"""Code points looked at together: what the passes over them share stays in the first-level cache."""
BASE = np.uint64(0x9E3779B97F4A7C15)
"""Base of the polynomial hashes (odd; 2^64 over the golden ratio)."""

POSITION, HELD, AFTER_SPACE, EMITTED, DONE, PYTHON, CHARACTERS, SPACES, PART, WORDS = range(10)
"""Places in the state that one document's chunks hand on."""


def new_state() -> np.ndarray:
    """A state for `next_hashes`: [10], int64; `begin` makes it ready for a document."""
    return np.zeros(10, np.int64)


@njit
def begin(state, position):
    """Ready for a document that begins at `position`.

    state: [10] int64 (`new_state`); position: bytes.
    """
    state[:] = 0
    state[POSITION] = position
    state[AFTER_SPACE] = 1


@njit
def _first_window(values, start, width):
    """Polynomial hash of the window that begins at `start`."""
    state = np.uint64(0)
    for i in range(start, start + width):
        state = state * BASE + np.uint64(values[i]) + np.uint64(1)
    return state


@njit
def _windows(values, count, width, out):
    """Polynomial hash of every window of `width` of the first `count` values; returns how many.

    A window's hash follows from the one before it: four runs of windows at a time, so that four products are under way
    together.
    """
    power = np.uint64(1)
    for _ in range(width):
        power *= BASE
    one, total = np.uint64(1) - power, count - width + 1
    run = total // 4
    done = 0
    if run > width:
        a, b = _first_window(values, 0, width), _first_window(values, run, width)
        c, d = _first_window(values, 2 * run, width), _first_window(values, 3 * run, width)
        old_a, old_b, old_c, old_d = values[:run], values[run:], values[2 * run :], values[3 * run :]
        new_a, new_b, new_c, new_d = (
            values[width:],
            values[run + width :],
            values[2 * run + width :],
            values[3 * run + width :],
        )
        out_a, out_b, out_c, out_d = out[1:], out[run + 1 :], out[2 * run + 1 :], out[3 * run + 1 :]
        out[0], out[run], out[2 * run], out[3 * run] = a, b, c, d
        for i in range(
            run - 1
        ):  # slices: that an index counted from zero is no negative one need not be looked at each time
            a = a * BASE + (np.uint64(new_a[i]) - power * np.uint64(old_a[i]) + one)
            b = b * BASE + (np.uint64(new_b[i]) - power * np.uint64(old_b[i]) + one)
            c = c * BASE + (np.uint64(new_c[i]) - power * np.uint64(old_c[i]) + one)
            d = d * BASE + (np.uint64(new_d[i]) - power * np.uint64(old_d[i]) + one)
            out_a[i], out_b[i], out_c[i], out_d[i] = a, b, c, d
        done = 4 * run
    if done < total:
        state = _first_window(values, done, width)
        out[done] = state
        for i in range(done, total - 1):
            state = state * BASE + (np.uint64(values[i + width]) - power * np.uint64(values[i]) + one)
            out[i + 1] = state
    return total


@njit
def _character_hashes(state, source, end, width, mapping, codes, out):
    """The next chunk of n-grams of characters."""
    held = state[HELD]
    position, count, after, python = fill(source, state[POSITION], end, mapping, codes, held, state[AFTER_SPACE] == 1)
    if python:
        state[PYTHON] = 1
        state[DONE] = 1
        return 0
    last = position >= end
    usable = count
    if count > 0 and codes[count - 1] == SPACE:  # at the end of a chunk it may turn out to be the last
        usable = count - 1
    spaces = 0
    new = codes[held:count]
    for i in range(new.shape[0]):
        new[i] &= CODE
        spaces += int(new[i] == SPACE)
    state[SPACES] += spaces
    state[CHARACTERS] += count - held
    if last and usable < count:
        state[CHARACTERS] -= 1
        state[SPACES] -= 1
    total = 0
    if usable >= width:
        total = _windows(codes, usable, width, out)
        state[EMITTED] = 1
        keep = usable - width + 1
        for i in range(keep, count):
            codes[i - keep] = codes[i]
        count -= keep
    elif last and state[EMITTED] == 0 and usable > 0:
        total = _windows(codes, usable, usable, out)  # a text shorter than a shingle is one
    state[POSITION], state[HELD], state[AFTER_SPACE] = position, count, int(after)
    state[DONE] = int(last)
    return total


@njit
def _close_word(state, words):
    """The word whose hash grew in the state is complete: append it."""
    words[state[WORDS]] = fmix64(np.uint64(state[PART]))
    state[WORDS] += 1
    state[PART] = 0


@njit
def _word_hashes(state, source, end, width, mapping, codes, words, out):
    """The next chunk of n-grams of words: runs of word characters, and every other character by itself."""
    position, count, after, python = fill(source, state[POSITION], end, mapping, codes, 0, state[AFTER_SPACE] == 1)
    if python:
        state[PYTHON] = 1
        state[DONE] = 1
        return 0
    for i in range(count):
        entry = codes[i]
        if entry & WORD:
            state[PART] = np.int64(np.uint64(state[PART]) * BASE + np.uint64(entry & CODE) + np.uint64(1))
            continue
        if state[PART] != 0:
            _close_word(state, words)
        if entry != SPACE:
            state[PART] = np.int64(np.uint64(entry) + np.uint64(1))
            _close_word(state, words)
    last = position >= end
    if last and state[PART] != 0:
        _close_word(state, words)
    total, have = 0, state[WORDS]
    if have >= width:
        total = _windows(words, have, width, out)
        state[EMITTED] = 1
        for i in range(total, have):
            words[i - total] = words[i]
        state[WORDS] = have - total
    elif last and state[EMITTED] == 0 and have > 0:
        total = _windows(words, have, have, out)
    state[POSITION], state[AFTER_SPACE], state[DONE] = position, int(after), int(last)
    return total


@njit
def _token_hashes(state, source, end, out):
    """The next chunk of tokens: runs of [A-Za-z0-9_]; each occurrence is one hash."""
    position, total = state[POSITION], 0
    part = np.uint64(state[PART])
    while position < end and total < out.shape[0] - 1:
        byte = source[position]
        letter = byte | np.uint8(32)
        if (97 <= letter <= 122) or (48 <= byte <= 57) or byte == 95:
            part = part * BASE + np.uint64(byte)
        elif part != 0:
            out[total] = part
            total += 1
            part = np.uint64(0)
        position += 1
    if position >= end:
        state[DONE] = 1
        if part != 0:
            out[total] = part
            total += 1
    state[POSITION], state[PART] = position, np.int64(part)
    return total


@njit
def next_hashes(kind, width, mapping, source, end, state, codes, words, out):
    """Raw hashes of the next chunk of a document, into `out`; how many. The document is over when `state[DONE]`.

    kind: `KINDS`; width: of an n-gram; mapping: [0x110000] uint32 (`normalization.table`); source: [bytes] uint8,
    read up to `end`; state: [10] int64. codes [CHUNK] uint32, words and out [2 * CHUNK] uint64: of `buffers`,
    handed on unchanged between the chunks of a document.
    """
    if kind == 0:
        total = _character_hashes(state, source, end, width, mapping, codes, out)
    elif kind == 1:
        total = _word_hashes(state, source, end, width, mapping, codes, words, out)
    else:
        total = _token_hashes(state, source, end, out)
    return total


def buffers() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `next_hashes` works in: code points, words, hashes. The last two have room for what a chunk is handed on."""
    return np.empty(CHUNK, np.uint32), np.empty(2 * CHUNK, np.uint64), np.empty(2 * CHUNK, np.uint64)


def reread(kind: ShingleKind, text: str) -> bytes:
    """What to hand to the compiled path for a text that it left to Python."""
    return (normalize(text) if kind != "token set" else text).encode()


def shingles(kind: ShingleKind, text: str, width: int) -> np.ndarray:
    """The set of a text, as sorted unique mixed uint64 hashes: for tests and single documents."""
    source = np.frombuffer(text.encode("utf-8"), np.uint8)
    state, (codes, words, out) = new_state(), buffers()
    parts: list[np.ndarray] = []
    begin(state, 0)
    while not state[DONE]:
        total = next_hashes(KINDS[kind], width, table(), source, len(source), state, codes, words, out)
        parts.append(mixed(out[:total]))
    if state[PYTHON]:
        return shingles(kind, normalize(text), width)
    return np.unique(np.concatenate(parts))


@njit
def mixed(values):
    """Every value mixed: uint64.

    values, and what is returned: [values] uint64.
    """
    out = np.empty(values.shape[0], np.uint64)
    for i in range(values.shape[0]):
        out[i] = fmix64(values[i])
    return out


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Exact Jaccard similarity of two sets given as sorted unique hashes; two empty sets count as equal."""
    if not len(one) and not len(other):
        return 1.0
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)
