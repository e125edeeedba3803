"""RefinedWeb's rules for pages, with the numbers of DCLM-BASELINE's configuration (dclm_baseline_refinedweb.yaml).

In the order of that file, after banned addresses (url_filter.py): runs of line feeds, URLs in the text, language,
length, word length, symbols, bullets, ellipses, words without letters, stop words, repetition (Gopher: Rae et al. 2021,
table A1), then lines that go by themselves; a page that loses more than a twentieth of its words to them goes as a
whole. The first rule that a page breaks names the reason.

Words are what upstream takes for them: of the length of a page and of what its lines lose, runs without white space
that begin with a letter or digit (fastText's tokens); of repetition, Unicode's words (UAX #29) that do. Not here:
DCLM's list of all top-level domains: an address in the text is one with a scheme, `www.` or a common domain.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import regex

from stages.core.errors import ConfigError

LANGUAGE_THRESHOLD = 0.65
SHORTEST, LONGEST = 50, 100_000
WORD_LENGTH = (3, 10)
SYMBOLS, MOST_SYMBOLS = ("#", "...", ". . .", "\u2026"), 0.1
BULLETS, MOST_BULLETS = ("●", "•", "*", "-"), 0.9
ELLIPSES, MOST_ELLIPSES = ("...", ". . .", "\u2026"), 0.3
MOST_WITHOUT_LETTERS = 0.2
STOP_WORDS, FEWEST_STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with")), 2
REPEATED_SEGMENTS, REPEATED_CHARACTERS = 0.3, 0.2
"""Lines, and paragraphs, that occur more than once: their number, their characters."""
TOP_NGRAM = {2: 0.2, 3: 0.18, 4: 0.16}
"""Characters of the commonest n-gram."""
REPEATED_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
"""Characters in n-grams that occur more than once."""
MOST_UPPERCASE, MOST_DIGITS, FEWEST_WORDS, BANNER_WORDS = 0.5, 0.999999, 2, 10
MOST_REMOVED = 0.05

_NEWLINES = re.compile(r"\n{3,}")
_BLANKS = re.compile("[ \n\r\t\v\f\0]+")
"""Where fastText's tokens end (Dictionary::readWord): no other white space of Unicode."""
_BOUNDARY = regex.compile(r"(?V1w)\b")
"""Unicode's default word boundaries."""
_URL = re.compile(
    r"\s{0,10}(?:(?:(?:https?|ftp)://|www\.)[-\w@:%.+~#=/?&()]+"
    r"|\b[-\w.]{1,256}\.(?:com|org|net|edu|gov|info|io|co|uk|de|fr|ru|cn|jp)\b[-\w()@:%+.~#?&/=]*"
    r"|\b(?:[0-2]?\d{1,2}\.){3}[0-2]?\d{1,2}\b[-\w()@:%+.~#?&/=]*)"
)
_COUNTER = re.compile(
    r"\W*\d[\d,.]*[kmb]?\s+(?:likes|shares|comments|retweets|reposts|quotes|bookmarks|upvotes|downvotes|downloads|views|followers)\W*"
)
_BANNERS = (
    re.compile(r"\s?items in cart", re.IGNORECASE),
    re.compile(r"\s?Read more\.\.\.$", re.IGNORECASE),
    re.compile(r"^Sign-in\s?", re.IGNORECASE),
)


def tokens(text: str) -> list[str]:
    """Runs without blanks that begin with a letter or digit: upstream's words where lengths are counted."""
    return [token for token in _BLANKS.split(text) if token[:1].isalnum()]


def words(text: str) -> list[str]:
    """Unicode's words that begin with a letter or digit: upstream's words where repetition is counted."""
    return [word for word in _BOUNDARY.split(text) if word[:1].isalnum()]


def cleaned(text: str, language_model: str | None = None) -> tuple[str, str | None]:
    """(the text with its bad lines gone, None), or (the text, the rule that it breaks)."""
    text = _URL.sub("", _NEWLINES.sub("\n\n", text))
    if not text.strip():
        return text, "no text but addresses"
    if language_model is not None and not _english(text, language_model):
        return text, "not English"
    before = len(tokens(text))
    reason = _page_rule(text, before) or _repetition_rule(text, words(text))
    if reason:
        return text, reason
    left = "\n".join(_lines(text)).strip()
    if before - len(tokens(left)) > MOST_REMOVED * before or not left:
        return text, "too many bad lines"
    return left, None


def _page_rule(text: str, length: int) -> str | None:
    """The first of the rules on the page as a whole that it breaks. length: its words."""
    if not SHORTEST <= length <= LONGEST:
        return "too few words" if length < SHORTEST else "too many words"
    tokens = text.split()
    if not WORD_LENGTH[0] <= sum(map(len, tokens)) / len(tokens) <= WORD_LENGTH[1]:
        return "word length"
    if sum(text.count(symbol) for symbol in SYMBOLS) > MOST_SYMBOLS * len(tokens):
        return "symbols"
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    if sum(line.startswith(BULLETS) for line in lines) > MOST_BULLETS * len(lines):
        return "bullets"
    if sum(line.endswith(ELLIPSES) for line in lines) > MOST_ELLIPSES * len(lines):
        return "ellipses"
    if sum(not any(map(str.isalpha, token)) for token in tokens) > MOST_WITHOUT_LETTERS * len(tokens):
        return "words without letters"
    if sum(token.lower() in STOP_WORDS for token in tokens) < FEWEST_STOP_WORDS:
        return "stop words"
    return None


def _repetition_rule(text: str, words: list[str]) -> str | None:
    """The first of the repetition rules that a page breaks."""
    for name, separator in (("lines", "\n"), ("paragraphs", "\n\n")):
        segments = [segment for segment in map(str.strip, text.split(separator)) if segment]
        again = {segment: count for segment, count in Counter(segments).items() if count > 1}
        if len(segments) > 1 and (
            sum(again.values()) > REPEATED_SEGMENTS * len(segments)
            or sum(len(segment) * count for segment, count in again.items())
            > REPEATED_CHARACTERS * sum(map(len, segments))
        ):
            return f"repeated {name}"
    characters = sum(map(len, words))
    for size, most in TOP_NGRAM.items():
        counts = Counter(zip(*(words[k:] for k in range(size)), strict=False))
        top = max(counts.values(), default=0)
        if (
            top > 1
            and top * max(sum(map(len, gram)) for gram, count in counts.items() if count == top) > most * characters
        ):
            return "a repeated n-gram"
    return next(
        ("repeated n-grams" for size, most in REPEATED_NGRAMS.items() if _repeated(words, size) > most * characters),
        None,
    )


def _repeated(words: list[str], size: int) -> int:
    """Characters of words in n-grams that occur more than once, each word counted once."""
    grams = list(zip(*(words[k:] for k in range(size)), strict=False))
    counts = Counter(grams)
    if len(counts) == len(grams):
        return 0
    covered, total = 0, 0
    for place, gram in enumerate(grams):
        if counts[gram] > 1:
            total += sum(map(len, words[max(place, covered) : place + size]))
            covered = place + size
    return total


def _lines(text: str) -> list[str]:
    """The lines that stay, and what stays of them. Empty ones always do."""
    kept = []
    for line in text.split("\n"):
        if line and (
            sum(map(str.isupper, line)) > MOST_UPPERCASE * len(line)
            or sum(map(str.isdigit, line)) > MOST_DIGITS * len(line)
        ):
            continue
        if line and (_COUNTER.fullmatch(line.lower()) or len(line.split()) < FEWEST_WORDS):
            continue
        short = line
        if line and len(line.split()) <= BANNER_WORDS:
            for banner in _BANNERS:
                short = banner.sub("", short)
            if not short.strip():
                continue
        kept.append(short)
    return kept


@functools.cache
def _detector(path: str) -> Any:
    import fasttext

    try:
        return fasttext.load_model(path)
    except (ValueError, OSError) as error:
        raise ConfigError(f"language_model = {path}: no fastText model: {error}") from error


def _english(text: str, path: str) -> bool:
    if not Path(path).is_file():
        raise ConfigError(f"language_model = {path}: no such file")
    labels, scores = _detector(path).predict([" ".join(text.split())])
    return bool(labels[0]) and labels[0][0] == "__label__en" and float(scores[0][0]) >= LANGUAGE_THRESHOLD
