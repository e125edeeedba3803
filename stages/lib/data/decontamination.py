"""Decontamination by n-grams: whether a text holds a test text, or shares a run of thirteen words with one.

`words` is what the project calls the words of a text where training and test are compared: here, and compiled, in
`stages.lib.data.word_hashes`, which `contamination` scans whole corpora with.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

from stages.lib.formats.examples import fingerprint

RUN = 13
"""Words in a run that train and test must not share (GPT-3's decontamination)."""
SIGNS = "-+*/=<>^"
"""Signs of arithmetic, which are words: 3 + 4 is not 3 - 4."""
_WORDS = re.compile(rf"\w+|[{re.escape(SIGNS)}]")


def folded(text: str) -> str:
    """Text in which words are compared: Unicode's compatibility form, no case."""
    return unicodedata.normalize("NFKC", text).casefold()


def words(text: str) -> list[str]:
    """Words of a text, without case and punctuation (GPT-3, appendix C). Signs of arithmetic are words; the same one
    again and again, as in a ruled line, is one word.
    """
    every = _WORDS.findall(folded(text))
    return [word for before, word in zip(["", *every], every, strict=False) if word != before or word not in SIGNS]


def marks(text: str) -> Iterator[bytes]:
    """Fingerprints of all runs of thirteen words; of a shorter text, of the whole."""
    sequence = words(text)
    for at in range(max(1, len(sequence) - RUN + 1)):
        yield fingerprint(" ".join(sequence[at : at + RUN]))


class ContaminationIndex:
    """Texts of a test. `is_contaminated(text)` says whether a text shares a run with one of them, or is one."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._marks = {mark for text in texts for mark in marks(text)}

    def is_contaminated(self, text: str) -> bool:
        """Whether the text has a run, or all, of a reserved one."""
        return bool(self._marks) and not self._marks.isdisjoint(marks(text))
