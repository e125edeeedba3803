"""Words by Unicode's default word boundaries (UAX #29), compiled: what `split_word_bounds` of BFF's Rust gives.

The property of every code point comes from the `regex` package's Unicode tables, once for each process; the tests
compare the boundaries with that package's own (an independent implementation). Two ways: `word_hashes` follows every
rule, and `paragraph_words`, without a branch on most of them, is three times as fast where no rule looks further than
to the neighbours.
"""

from __future__ import annotations

import functools

import numpy as np
import regex

from stages.lib.data.numba_jit import decode, fmix64, njit

(
    OTHER,
    CR,
    LF,
    NEWLINE,
    EXTEND,
    ZWJ,
    FORMAT,
    KATAKANA,
    HEBREW,
    LETTER,
    MIDLETTER,
    MIDNUM,
    MIDNUMLET,
    NUMERIC,
    EXTENDNUMLET,
    RI,
    SPACE,
    SINGLE,
    DOUBLE,
) = range(19)
PICTOGRAPH = np.uint16(32)
"""Flag beside the class: Extended_Pictographic (rule WB3c)."""
WHITE = np.uint16(64)
"""Flag beside the class: White_Space; a word of such characters alone is none (Rust's `char::is_whitespace`)."""
SKIP, ODD = np.uint16(1 << 7), np.uint16(1 << 8)
"""Flags beside the class, for `_joins`: what attaches to the character before it (WB4); what only `word_hashes` knows.
"""
GROUPS = np.uint16(3 << 9)
"""Flags beside the class: two characters that share one are joined (WB5, WB8 to WB10, WB13)."""
SIDES, MIDS, APART = np.uint16(3 << 11), np.uint16(3 << 13), np.uint16(2)
"""Flags beside the class: a letter, a digit; then, APART bits above, what joins two of them between which it stands
(WB6, 7, 11, 12).
"""
CLASS = np.uint16(31)
AHLETTER = 1 << LETTER | 1 << HEBREW
SKIPPED = 1 << EXTEND | 1 << FORMAT | 1 << ZWJ
LINES = 1 << CR | 1 << LF | 1 << NEWLINE
MIDLETTERS = 1 << MIDLETTER | 1 << MIDNUMLET | 1 << SINGLE
MIDNUMBERS = 1 << MIDNUM | 1 << MIDNUMLET | 1 << SINGLE
LETTERS, KATAKANAS = 1 << LETTER | 1 << NUMERIC | 1 << EXTENDNUMLET, 1 << KATAKANA | 1 << EXTENDNUMLET
WORDLIKE = AHLETTER | 1 << NUMERIC | 1 << KATAKANA | 1 << EXTENDNUMLET
"""Sets of classes, as the rules group them."""
OFFSET, PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
"""FNV-1a, 64 bits."""
_NAMES = {
    "CR": CR,
    "LF": LF,
    "Newline": NEWLINE,
    "Extend": EXTEND,
    "ZWJ": ZWJ,
    "Format": FORMAT,
    "Katakana": KATAKANA,
    "Hebrew_Letter": HEBREW,
    "ALetter": LETTER,
    "MidLetter": MIDLETTER,
    "MidNum": MIDNUM,
    "MidNumLet": MIDNUMLET,
    "Numeric": NUMERIC,
    "ExtendNumLet": EXTENDNUMLET,
    "Regional_Indicator": RI,
    "WSegSpace": SPACE,
    "Single_Quote": SINGLE,
    "Double_Quote": DOUBLE,
}
_ASSIGNED = (range(0xD800), range(0xE000, 0x34000), range(0xE0000, 0xE1000))
"""Code points that may have a property; the rest is OTHER."""


@functools.cache
def properties() -> np.ndarray:
    """Class and flags of every code point, uint16."""
    flags = np.zeros(0x110000, np.uint16)
    text = "".join(chr(point) for span in _ASSIGNED for point in span)
    for name, value in _NAMES.items():
        for match in regex.finditer(rf"\p{{Word_Break={name}}}+", text):
            flags[np.frombuffer(match.group().encode("utf-32-le"), np.uint32)] = value
    for name, flag in (("Extended_Pictographic", PICTOGRAPH), ("White_Space", WHITE)):
        for match in regex.finditer(rf"\p{{{name}}}+", text):
            flags[np.frombuffer(match.group().encode("utf-32-le"), np.uint32)] |= flag
    classes = np.uint64(1) << (flags & CLASS).astype(np.uint64)
    for bit, chosen in enumerate(
        (
            SKIPPED,
            1 << ZWJ | 1 << HEBREW | 1 << RI,
            LETTERS,
            KATAKANAS,
            1 << LETTER,
            1 << NUMERIC,
            MIDLETTERS,
            MIDNUMBERS,
        ),
        7,
    ):
        flags[(classes & np.uint64(chosen)) != 0] |= np.uint16(1 << bit)
    return flags


@njit
def within(value, classes):
    """Whether a class (of `properties`) is one of a set.

    value: uint16; classes: a bit for each, int64.
    """
    return classes >> np.int64(value) & 1 != 0


@njit
def _significant(source, position, end, classes):
    """Class of the next character that rule WB4 does not skip; OTHER at the end."""
    while position < end:
        point, position = decode(source, position)
        value = classes[point] & CLASS
        if not within(value, SKIPPED):
            return value
    return np.uint16(OTHER)


@njit
def _joined(before, last, value, source, position, end, classes, regional):
    """Whether there is no boundary (WB5 to WB16) between `last` (`before` came ahead of it) and `value`, after which
    `position` is.
    """
    letter, after = within(last, AHLETTER), within(value, AHLETTER)
    if letter and (after or value == NUMERIC):  # WB5, WB9
        return True
    if letter and within(value, MIDLETTERS) and within(_significant(source, position, end, classes), AHLETTER):  # WB6
        return True
    if within(last, MIDLETTERS) and after and within(before, AHLETTER):  # WB7
        return True
    if last == HEBREW and (
        value == SINGLE or (value == DOUBLE and _significant(source, position, end, classes) == HEBREW)
    ):  # WB7a, b
        return True
    if last == DOUBLE and value == HEBREW and before == HEBREW:  # WB7c
        return True
    if last == NUMERIC and (value == NUMERIC or after):  # WB8, WB10
        return True
    if value == NUMERIC and before == NUMERIC and within(last, MIDNUMBERS):  # WB11
        return True
    if (
        last == NUMERIC and within(value, MIDNUMBERS) and _significant(source, position, end, classes) == NUMERIC
    ):  # WB12
        return True
    if last == KATAKANA and value == KATAKANA:  # WB13
        return True
    if within(last, WORDLIKE) and value == EXTENDNUMLET:  # WB13a
        return True
    if last == EXTENDNUMLET and within(value, WORDLIKE):  # WB13b
        return True
    return last == RI and value == RI and regional % 2 == 1  # WB15, WB16


POSITION, PART, SOLID_SO_FAR, BEFORE, LAST, RAW, REGIONAL, STARTED = range(8)
"""Places in the state that `next_word_hashes` hands on to itself."""


@njit
def next_word_hashes(source, end, classes, state, out):
    """The next words' hashes of the text that ends at `end`, as `word_hashes`: as many as `out` has room for but one,
    and the last when the text is over (`state[POSITION] == end`); how many.

    source: [bytes] uint8; classes: [0x110000] uint16 (`properties`); state: [8] int64, zeros but for POSITION at the
    beginning. Written: out uint64, at least two.
    """
    total, room, position = 0, out.shape[0] - 1, state[POSITION]
    part, solid, started = np.uint64(state[PART]), state[SOLID_SO_FAR] != 0, state[STARTED] != 0
    before, last, raw = np.uint16(state[BEFORE]), np.uint16(state[LAST]), np.uint16(state[RAW])
    regional = state[REGIONAL]
    while position < end and total < room:
        first = source[position]
        start = position
        if first < 0x80:
            entry = classes[first]
            position += 1
        else:
            point, position = decode(source, position)
            entry = classes[point]
        value = entry & CLASS
        skipped = within(value, SKIPPED)
        line = within(value, LINES)
        if not started or (value == OTHER and not entry & PICTOGRAPH):  # no rule joins these to what came before
            boundary = True
        elif value == SPACE:  # WB3d alone
            boundary = raw != SPACE
        elif raw == CR and value == LF:
            boundary = False
        elif line or within(raw, LINES):
            boundary = True
        elif (raw == ZWJ and entry & PICTOGRAPH) or (raw == SPACE and value == SPACE) or skipped:
            boundary = False
        else:
            boundary = not _joined(before, last, value, source, position, end, classes, regional)
        if boundary:
            if solid:
                out[total] = fmix64(part)
                total += 1
            part, solid = OFFSET, False
        for i in range(start, position):
            part = (part ^ np.uint64(source[i])) * PRIME
        solid = solid or not entry & WHITE
        if not skipped or within(raw, LINES) or not started:
            before, last = last, value
            regional = regional + 1 if value == RI else 0
        raw, started = value, True
    if position >= end and solid:
        out[total] = fmix64(part)
        total += 1
        solid = False
    state[POSITION], state[PART], state[SOLID_SO_FAR], state[STARTED] = (
        position,
        np.int64(part),
        int(solid),
        int(started),
    )
    state[BEFORE], state[LAST], state[RAW], state[REGIONAL] = before, last, raw, regional
    return total


@njit
def word_hashes(source, position, end, classes, out):
    """One mixed hash for each word of `source[position:end]` that is not white space alone, in order; how many.

    source: [bytes] uint8; classes: [0x110000] uint16 (`properties`). Written: out uint64, room for one more than there
    are bytes.
    """
    state = np.zeros(8, np.int64)
    state[POSITION] = position
    return next_word_hashes(source, end, classes, state, out)


JOINED, SOLID = np.uint8(1), np.uint8(2)
"""Marks of a byte: no boundary lies before it; its character is no white space."""


@njit
def _joins(source, position, end, classes, marks):
    """Mark every byte of the paragraph that begins at `position`; the paragraph's end, or -1 where `word_hashes` is
    needed.

    What stands in the middle (WB6) is joined or not by the character after it: a mark is written when that is known.
    """
    begin, place, mark = position, position, np.uint8(0)
    before, middle, free = np.uint16(0), np.uint16(0), True
    while position < end:
        byte = source[position]
        if byte == 10 and position > begin:
            break
        start = position
        if byte < 0x80:
            entry = classes[byte]
            position += 1
        else:
            point, position = decode(source, position)
            entry = classes[point]
            for i in range(start + 1, position):
                marks[i - begin] = JOINED
        if entry & (SKIP | ODD):
            if entry & ODD or free or before & MIDS:
                return -1
            marks[start - begin] = JOINED | SOLID
            continue
        joins = middle & entry
        marks[place - begin] = mark | np.uint8(joins != 0)
        place, free = start, entry & WHITE != 0
        mark = np.uint8((joins | before & entry & GROUPS) != 0) | np.uint8(not free) << np.uint8(1)
        middle = entry >> APART & before & SIDES
        before = entry
    marks[place - begin] = mark
    return position


@njit
def paragraph_words(source, position, end, classes, marks, out):
    """Hashes of the words of the paragraph that begins at `position` (before `end`): (how many, the paragraph's end).

    It ends before the next line feed. `marks` and `out` have room for as many bytes, `out` for one more.

    source: [bytes] uint8; classes: [0x110000] uint16; marks: uint8; out: uint64.
    """
    stop = _joins(source, position, end, classes, marks)
    if stop < 0:
        stop = position + 1
        while stop < end and source[stop] != 10:
            stop += 1
        return word_hashes(source, position, stop, classes, out), stop
    total, part, solid = 0, OFFSET, np.uint8(0)
    for i in range(stop - position):
        joined = marks[i] & JOINED
        out[total] = part  # stays when a boundary follows
        total += np.int64(solid & ~joined & np.uint8(1))
        part = ((part if joined else OFFSET) ^ np.uint64(source[position + i])) * PRIME
        solid = (solid & joined) | marks[i] >> np.uint8(1)
    out[total] = part
    total += np.int64(solid)
    for i in range(total):
        out[i] = fmix64(out[i])
    return total, stop
