"""The words of `stages.lib.data.decontamination.words`, compiled: where they lie in UTF-8 text, and a 64-bit hash of
each.

A table says for every code point what it is: part of a word, a word by itself, neither, or one that needs Python
(its compatibility form or its lower case is several code points, or it joins the one before). A text with one of the
last goes through `folded` first, and then through a table that leaves everything as it is.
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np

from stages.lib.data.decontamination import SIGNS, folded
from stages.lib.data.numba_jit import decode, fmix64, njit

LETTERED_PLANES = 0x34000
"""Code points from here on are no letters or digits (Unicode has assigned none). A test looks at all of them."""
CODE = np.uint32(0x1FFFFF)
WORD, SIGN, PYTHON = np.uint32(1 << 24), np.uint32(1 << 25), np.uint32(1 << 26)
BASE = np.uint64(0x9E3779B97F4A7C15)
"""Base of the polynomial hashes (odd; 2^64 over the golden ratio)."""


@functools.cache
def tables() -> tuple[np.ndarray, np.ndarray]:
    """Two tables of all code points, uint32: for any text, and for text that `folded` returned."""
    first, plain = np.zeros(0x110000, np.uint32), np.zeros(0x110000, np.uint32)
    joining = _joining()
    for point in range(LETTERED_PLANES):
        if 0xD800 <= point < 0xE000:
            continue
        character = chr(point)
        plain[point] = _entry(character)
        form = unicodedata.normalize("NFKC", character)
        if any(unicodedata.combining(c) or c in joining for c in form):
            first[point] = PYTHON
            continue
        entries = [_entry(c) for c in form.casefold()]
        first[point] = entries[0] if len(entries) == 1 else PYTHON if any(entries) else 0
    first.flags.writeable = plain.flags.writeable = False
    return first, plain


def _entry(character: str) -> int:
    if character.isalnum() or character == "_":
        return ord(character) | int(WORD)
    return ord(character) | int(SIGN) if character in SIGNS else 0


def _joining() -> set[str]:
    """Code points without a combining class that nonetheless join the one before them."""
    joining = {
        chr(p) for p in [*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)]
    }  # Hangul vowels and trailing consonants
    for point in range(LETTERED_PLANES):
        parts = unicodedata.decomposition(chr(point)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            joining.add(chr(int(parts[1], 16)))
    return joining


def reread(text: str) -> bytes:
    """What to read with the second table, of a text that needs Python."""
    return folded(text).encode("utf-8", "surrogatepass")


@njit
def hash_words(source, begin, end, table, hashes, starts, ends):
    """Words of `source[begin:end]`: hash, first byte and end of each, into arrays with room for end - begin + 1.

    source: [bytes] uint8; table: [0x110000] uint32 (`tables`); hashes: [room] uint64; starts, ends: [room] int64.
    Returns how many, and whether the text needs Python (then they are worth nothing).
    """
    position, count, start = begin, 0, np.int64(-1)
    part, sign = np.uint64(0), np.uint32(0)
    while position < end:
        byte = source[position]
        if byte < 0x80:
            entry, following = table[byte], position + 1
        else:
            point, following = decode(source, position)
            entry = table[point]
        if entry & WORD:
            if start < 0:
                start = position
            part = part * BASE + np.uint64(entry & CODE)
        else:
            if start >= 0:
                hashes[count], starts[count], ends[count] = fmix64(part), start, position
                count, start, part, sign = count + 1, np.int64(-1), np.uint64(0), np.uint32(0)
            if entry & SIGN and entry != sign:
                sign = entry
                hashes[count], starts[count], ends[count] = fmix64(np.uint64(entry & CODE)), position, following
                count += 1
            elif entry & PYTHON:
                return count, True
        position = following
    if start >= 0:
        hashes[count], starts[count], ends[count] = fmix64(part), start, position
        count += 1
    return count, False


@njit
def same_word(source, start, end, table, other, other_start, other_end, other_table):
    """Whether two words, as they stand in two texts, are the same one: their code points are compared.

    source, other: [bytes] uint8; table, other_table: [0x110000] uint32 (`tables`).
    """
    while start < end and other_start < other_end:
        if source[start] < 0x80:
            left, start = table[source[start]], start + 1
        else:
            point, start = decode(source, start)
            left = table[point]
        if other[other_start] < 0x80:
            right, other_start = other_table[other[other_start]], other_start + 1
        else:
            point, other_start = decode(other, other_start)
            right = other_table[point]
        if left != right:
            return False
    return start >= end and other_start >= other_end
