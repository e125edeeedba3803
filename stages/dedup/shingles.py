"""From text to the set of 64-bit hashes that MinHash and the exact Jaccard similarity both work on."""

from __future__ import annotations

import re
import string

import numpy as np
import xxhash
from numba import njit

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NOT_TOKEN = re.compile(r"[^A-Za-z_0-9]+")
_WORD = re.compile(r"\w+|[^\w\s]")


def normalize(text: str) -> str:
    """SlimPajama's normalization: lower case, ASCII punctuation out, runs of whitespace to one space, stripped."""
    return " ".join(text.lower().translate(_PUNCTUATION).split())


def character_count(text: str, how: str) -> int:
    """Length for the short filter. 'paper': without punctuation, spaces, newlines, tabs (3.3.1); 'code': with spaces."""
    clean = normalize(text)
    return len(clean) if how == "code" else len(clean) - clean.count(" ")


@njit(nogil=True, cache=True)
def mix(value):
    """A bijection of uint64 whose every output bit depends on every input bit (MurmurHash3's fmix64)."""
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xFF51AFD7ED558CCD)
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xC4CEB9FE1A85EC53)
    value ^= value >> np.uint64(33)
    return value


@njit(nogil=True, cache=True)
def _rolling(values, width):
    """A mixed 64-bit polynomial hash of every window of `width` values."""
    base = np.uint64(0x9E3779B97F4A7C15)
    power = np.uint64(1)
    for _ in range(width):
        power *= base
    out = np.empty(max(values.shape[0] - width + 1, 0), np.uint64)
    state = np.uint64(0)
    for i in range(values.shape[0]):
        state = state * base + values[i] + np.uint64(1)
        if i >= width:
            state -= power * (values[i - width] + np.uint64(1))
        if i >= width - 1:
            out[i - width + 1] = mix(state)
    return out


def character_shingles(text: str, width: int) -> np.ndarray:
    """Sorted unique hashes of the character n-grams of the normalized text; a shorter text is one shingle."""
    codes = np.frombuffer(normalize(text).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    return np.unique(_rolling(codes, min(width, len(codes)) or 1))


def word_hashes(text: str) -> np.ndarray:
    """One 64-bit hash per word or punctuation mark, in order."""
    return np.array([xxhash.xxh3_64_intdigest(w.encode("utf-8", "surrogatepass")) for w in _WORD.findall(text)], np.uint64)


def ngram_hashes(words: np.ndarray, width: int) -> np.ndarray:
    """Hashes of all n-grams of words, in order; empty when there are fewer words than `width`."""
    return _rolling(words, width)


def word_shingles(text: str, width: int) -> np.ndarray:
    """Sorted unique hashes of the word n-grams of the normalized text; a shorter text is one shingle."""
    words = word_hashes(normalize(text))
    return np.unique(_rolling(words, min(width, len(words)) or 1))


def token_set(text: str) -> np.ndarray:
    """Sorted unique hashes of the tokens of source code: what lies between characters outside [A-Za-z_0-9]."""
    tokens = {t for t in _NOT_TOKEN.split(text) if t}
    return np.array(sorted(xxhash.xxh3_64_intdigest(t.encode()) for t in tokens), np.uint64)


def shingles(kind: str, text: str, width: int) -> np.ndarray:
    """The set of a text by a recipe's kind of shingle, as sorted unique uint64 hashes."""
    if kind == "characters":
        return character_shingles(text, width)
    return word_shingles(text, width) if kind == "words" else token_set(text)


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Exact Jaccard similarity of two sets given as sorted unique hashes; two empty sets count as equal."""
    if not len(one) and not len(other):
        return 1.0
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)
