"""A fastText classifier of two labels, collapsed: the same scores, several times faster, with a fiftieth of the memory.

fastText averages the rows of a text's words and n-grams, and takes the softmax of two products with that average. The
difference
of the two is linear, so every row can be projected onto the difference of the output vectors beforehand: one number a
row. The compiled scorer reads UTF-8 and gives fastText's probability within 1e-6 (2e-5 where that is 0.5 within the
rounding of floats: fastText adds 1e-5 to the larger of the two); `Scorer.of` refuses a model that it does not fit.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from stages.lib.data.numba_jit import fmix64, njit

POSITIVE, NEGATIVE = "__label__hq", "__label__cc"
"""DCLM's labels."""
LABEL = b"__label__"
EOS = "</s>"
"""fastText's end of a line, which is a word like others; in a text it ends the text (Dictionary::getLine)."""
LOG_FLOOR = 1e-5
"""fastText's std_log adds this before the logarithm (utils.cc), so that its probabilities are too large by it."""
MOST_NGRAMS = 8
"""Longest n-grams of words that the compiled scorer has room for."""
TABLES = ("keys.npy", "rows.npy", "buckets.npy")
"""Files of a collapsed classifier."""
OFFSET, PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
"""FNV-1a, 64 bits: finds a word in the table. fastText's own 32-bit hash makes the n-grams."""


def line(text: str) -> str:
    """A document on one line, as DCLM gives it to fastText; words that fastText reads as labels lose their mark."""
    return " ".join(text.strip().splitlines()).replace("__label__", "label")


NGRAM = np.uint64(116049371)
"""Multiplier of the hash of n-grams (Dictionary::addWordNgrams)."""


@njit
def _white(point):
    """`str.isspace`, which `strip` goes by."""
    if point <= 0x20:
        return 9 <= point <= 13 or point >= 28
    if point == 0x85 or point == 0xA0 or point == 0x1680 or 0x2000 <= point <= 0x200A:
        return True
    return point == 0x2028 or point == 0x2029 or point == 0x202F or point == 0x205F or point == 0x3000


@njit
def _point(source, position, end):
    """Code point at a position of UTF-8, and its bytes."""
    first = np.int64(source[position])
    if first < 0x80:
        return first, 1
    if first < 0xE0:
        return (first & 0x1F) << 6 | np.int64(source[position + 1]) & 0x3F, 2
    if first < 0xF0:
        return (first & 0xF) << 12 | (np.int64(source[position + 1]) & 0x3F) << 6 | np.int64(
            source[position + 2]
        ) & 0x3F, 3
    return 0x10000, 4


@njit
def _stripped(source, start, end):
    """Where a text begins and ends without white space around it."""
    while start < end:
        point, size = _point(source, start, end)
        if not _white(point):
            break
        start += size
    while end > start:
        last = end - 1
        while source[last] & np.uint8(0xC0) == 0x80:
            last -= 1
        if not _white(_point(source, last, end)[0]):
            break
        end = last
    return start, end


PLAIN, SEPARATOR, C2, E2 = range(4)
"""What a byte is to the scorer: part of a word, a separator, or perhaps the beginning of one of several bytes."""


@functools.cache
def classes() -> np.ndarray:
    """The class of every byte, uint8. Separators are fastText's (Dictionary::readWord), and what `str.splitlines`
    breaks at.
    """
    classes_of = np.full(256, PLAIN, np.uint8)
    classes_of[[0, *range(9, 14), 28, 29, 30, 32]] = SEPARATOR
    classes_of[0xC2], classes_of[0xE2] = C2, E2
    return classes_of


@njit
def _separator(source, position, kinds):
    """Bytes of a separator of words; 0 for none."""
    kind = kinds[source[position]]
    if kind == PLAIN:
        return 0
    if kind == SEPARATOR:
        return 1
    if kind == C2:
        return 2 if source[position + 1] == 0x85 else 0
    return 3 if source[position + 1] == 0x80 and (source[position + 2] == 0xA8 or source[position + 2] == 0xA9) else 0


@njit
def fill_table(source, ends, values, keys, rows):
    """Put words into the open-addressed table `keys`, with their projected rows.

    source: [bytes] uint8, the words one after another; ends: [words + 1] int64; values: [words] float32. Written: keys
    [a power of two] uint64, 0 where free; rows, float32, beside them.
    """
    mask = np.int64(keys.shape[0] - 1)
    for i in range(ends.shape[0] - 1):
        key = OFFSET
        for k in range(ends[i], ends[i + 1]):
            key = (key ^ np.uint64(source[k])) * PRIME
        key = fmix64(key) | np.uint64(1)
        place = np.int64(key) & mask
        while keys[place] != 0:
            place = (place + 1) & mask
        keys[place], rows[place] = key, values[i]


@njit
def _row(key, keys, rows):
    """Projected row of a word, and whether there is one."""
    mask = np.int64(keys.shape[0] - 1)
    key = fmix64(key) | np.uint64(1)
    place = np.int64(key) & mask
    while keys[place] != 0 and keys[place] != key:
        place = (place + 1) & mask
    return (rows[place], 1) if keys[place] == key else (np.float32(0), 0)


@njit
def _longer_ngrams(buckets, ngrams, ring, seen):
    """Projected rows of the n-grams of three words and more that end at word `seen`, added up; and how many."""
    total, count = 0.0, 0
    for size in range(3, min(ngrams, seen + 1) + 1):
        value = ring[(seen - size + 1) % ngrams]
        for k in range(seen - size + 2, seen + 1):
            value = value * NGRAM + ring[k % ngrams]
        total += buckets[np.int64(value % np.uint64(buckets.shape[0]))]
        count += 1
    return total, count


@njit
def score_texts(source, ends, kinds, keys, rows, buckets, ngrams, eos_key, eos_hash, out):
    """The difference of the two logits of each text.

    source: [bytes] uint8; ends: [texts + 1] int64; kinds: [256] uint8 (`classes`); keys, rows: see `fill_table`;
    buckets: [buckets] float32, projected rows of n-grams; ngrams: words in the longest; eos_key uint64,
    eos_hash uint32: of the word that ends a line. Written: out [texts] float64.
    """
    ring = np.zeros(ngrams, np.uint64)
    size = np.uint64(buckets.shape[0])
    for d in range(ends.shape[0] - 1):
        total, count, seen, over = 0.0, 0, 0, False
        before = np.uint64(0)
        position, end = _stripped(source, ends[d], ends[d + 1])
        while not over:
            key, hash = OFFSET, np.uint32(2166136261)
            start = position
            while position < end:
                byte = source[position]
                if kinds[byte] != PLAIN and _separator(source, position, kinds) != 0:
                    break
                key = (key ^ np.uint64(byte)) * PRIME
                hash = np.uint32((hash ^ np.uint32(np.int32(np.int8(byte)))) * np.uint32(16777619))
                position += 1
            if position == start:
                if position < end:
                    position += _separator(source, position, kinds)
                    continue
                key, hash = eos_key, eos_hash
            over = key == eos_key
            row, known = _row(key, keys, rows)
            total, count = total + row, count + known
            word = np.uint64(np.int64(np.int32(hash)))
            if ngrams > 1 and seen > 0:
                total += buckets[np.int64((before * NGRAM + word) % size)]
                count += 1
            if ngrams > 2:
                ring[seen % ngrams] = word
                more, words = _longer_ngrams(buckets, ngrams, ring, seen)
                total, count = total + more, count + words
            before = word
            seen += 1
        out[d] = total / count if count else 0.0


class Scorer:
    """The collapsed classifier: a table of words, a projected row for each, and one for each bucket of n-grams."""

    def __init__(self, keys: np.ndarray, rows: np.ndarray, buckets: np.ndarray, ngrams: int) -> None:
        self.keys, self.rows, self.buckets, self.ngrams = keys, rows, buckets, ngrams

    @classmethod
    def of(cls, model: Any) -> Scorer | None:
        """Collapse a fastText model; None when that would not give its scores (other loss, subwords, labels,
        quantized).
        """
        arguments = model.f.getArgs()
        fits = str(arguments.loss).endswith("softmax") and arguments.maxn == 0 and arguments.wordNgrams <= MOST_NGRAMS
        if not fits or sorted(model.get_labels()) != sorted((POSITIVE, NEGATIVE)) or model.is_quantized():
            return None
        words = [
            word.encode("utf-8", "surrogateescape") for word in model.get_words(on_unicode_error="surrogateescape")
        ]
        output = np.asarray(model.f.getOutputMatrix())
        labels = model.get_labels()
        difference = output[labels.index(POSITIVE)].astype(np.float64) - output[labels.index(NEGATIVE)]
        matrix = np.asarray(model.f.getInputMatrix())
        step = 1 << 16
        projected = np.concatenate(
            [matrix[i : i + step].astype(np.float64) @ difference for i in range(0, len(matrix), step)]
        )
        keys, rows = _table(words, projected[: len(words)])
        buckets = projected[len(words) :] if arguments.wordNgrams > 1 else np.zeros(1)
        tables = keys, rows, np.ascontiguousarray(buckets.astype(np.float32))
        for table in tables:
            table.flags.writeable = False  # as those that `load` maps: the kernels are compiled for one kind of array
        return cls(*tables, int(arguments.wordNgrams))

    def save(self, folder: Path) -> None:
        """Write the tables, for the workers to map."""
        for name in TABLES:
            np.save(folder / name, getattr(self, Path(name).stem))

    @classmethod
    def load(cls, *paths: Path, ngrams: int) -> Scorer:
        """Map the tables that `save` wrote, in the order of TABLES."""
        keys, rows, buckets = (np.load(path, mmap_mode="r") for path in paths)
        return cls(keys, rows, buckets, ngrams)

    def score(self, source: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Probability of the positive label for each text, as `run.scores` has it from fastText: [texts], float64."""
        out = np.empty(len(ends) - 1, np.float64)
        self._run(source, ends, out)
        if LABEL in memoryview(source.data)[ends[0] : ends[-1]].tobytes():
            for d in range(len(out)):
                text = source[ends[d] : ends[d + 1]].tobytes()
                if LABEL in text:
                    data = np.frombuffer(line(text.decode()).encode(), np.uint8)
                    self._run(data, np.array([0, len(data)]), out[d : d + 1])
        probability = 1 / (1 + np.exp(-out))
        return np.where(probability >= 0.5, probability + LOG_FLOOR, probability - LOG_FLOOR)

    def _run(self, source: np.ndarray, ends: np.ndarray, out: np.ndarray) -> None:
        eos = np.frombuffer(EOS.encode(), np.uint8)
        key, hash = int(OFFSET), 2166136261
        for byte in eos.tolist():
            key, hash = (key ^ byte) * int(PRIME) % (1 << 64), (hash ^ byte) * 16777619 % (1 << 32)
        score_texts(
            source,
            ends,
            classes(),
            self.keys,
            self.rows,
            self.buckets,
            self.ngrams,
            np.uint64(key),
            np.uint32(hash),
            out,
        )


def _table(words: list[bytes], values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An open-addressed table of words, at most half full: keys (0: empty) and values."""
    size = 1 << max(4, (2 * len(words)).bit_length())
    keys, rows = np.zeros(size, np.uint64), np.zeros(size, np.float32)
    ends = np.concatenate([[0], np.cumsum([len(word) for word in words])]).astype(np.int64)
    fill_table(np.frombuffer(b"".join(words), np.uint8), ends, values, keys, rows)
    return keys, rows
