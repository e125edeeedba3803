"""SlimPajama's normalization, plain and compiled: lower case, ASCII punctuation out, whitespace runs to one space,
stripped.

The compiled one reads UTF-8 and writes code points. Two letters need Python: the lower case of U+0130 is two code
points, that of U+03A3 (capital sigma) depends on its neighbours. It says so, and the caller hands it `normalize(text)`
instead, which normalizes to itself.
"""

from __future__ import annotations

import functools
import string

import numpy as np

from stages.lib.data.numba_jit import decode, njit

_PUNCTUATION = str.maketrans("", "", string.punctuation)
CASED_PLANES = 0x20000
"""Code points from here on have no case and are no whitespace (planes 2 and up: ideographs, tags, private use)."""
LETTERED_PLANES = 0x34000
"""Code points from here on are no letters or digits (Unicode has assigned none). A test looks at all of them."""
CODE = np.uint32(0x1FFFFF)
WORD = np.uint32(1 << 24)
"""Flag in the table: the code point is a word character (`\\w` of `re`)."""
SPACE, DELETED = np.uint32(32), np.uint32(0x1FFFFF)


def normalize(text: str) -> str:
    """The normalized text: what the compiled path must agree with."""
    return " ".join(text.lower().translate(_PUNCTUATION).split())


def character_count(text: str, how: str) -> int:
    """Length for the short filter. how: 'paper', without punctuation and white space (3.3.1); 'code', with spaces."""
    clean = normalize(text)
    return len(clean) if how == "code" else len(clean) - clean.count(" ")


@functools.cache
def table() -> np.ndarray:
    """For every code point what it becomes, uint32: the code point in the low 21 bits, `WORD` above; SPACE; DELETED."""
    entries = np.arange(0x110000, dtype=np.uint32)
    words = np.zeros(0x110000, bool)
    for point in range(CASED_PLANES):
        if 0xD800 <= point < 0xE000:
            continue
        character = chr(point)
        lower = character.lower()
        if character.isspace():
            entries[point] = SPACE
        elif character in string.punctuation:
            entries[point] = DELETED
        elif len(lower) == 1:
            entries[point] = ord(lower)
            words[point] = lower.isalnum()
    for point in range(CASED_PLANES, LETTERED_PLANES):
        words[point] = chr(point).isalnum()
    return entries | np.where(words, WORD, np.uint32(0))


@njit
def fill(source, position, end, mapping, out, count, after_space):
    """Normalize from `position` until the text ends or `out` is full: (position, count, after_space, needs Python).

    `out` gets table entries, appended at `count`; `after_space` says that the last one was a space, or that there is
    none yet. The caller takes a space at the very end of a text off.

    source: [bytes] uint8; mapping: [0x110000] uint32 (`table`); out: [room] uint32.
    """
    room = out.shape[0]
    while position < end and count < room:
        ascii_, filled = source[position : position + min(end - position, room - count)], np.uint64(count)
        done = 0
        for i in range(ascii_.shape[0]):
            if ascii_[i] >= 0x80:
                break
            entry = mapping[ascii_[i]]
            space, deleted = entry == SPACE, entry == DELETED
            out[filled] = entry
            filled += np.uint64(not (deleted | (space & after_space)))
            after_space = (deleted & after_space) | space
            done = i + 1
        position, count = position + done, np.int64(filled)
        if done < ascii_.shape[0]:
            point, position = decode(source, position)
            if point == 0x130 or point == 0x3A3:
                return position, count, after_space, True
            entry = mapping[point]
            space, deleted = entry == SPACE, entry == DELETED
            out[count] = entry
            count += int(not (deleted or (space and after_space)))
            after_space = after_space if deleted else space
    return position, count, after_space, False
