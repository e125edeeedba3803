"""Decontamination by n-grams: whether a text holds a test text, or shares a run of thirteen words with one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from stages.lib.formats.examples import fingerprint

RUN = 13
"""Words in a run that train and test must not share (GPT-3's decontamination)."""


def marks(text: str) -> Iterator[bytes]:
    """Fingerprints of all runs of thirteen words; of a shorter text, of the whole. Signs of arithmetic are words."""
    words = re.findall(r"\w+|[-+*/=<>^]", text.lower())
    for at in range(max(1, len(words) - RUN + 1)):
        yield fingerprint(" ".join(words[at : at + RUN]))


class ContaminationIndex:
    """Texts of a test. `is_contaminated(text)` says whether a text shares a run with one of them, or is one."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._marks = {mark for text in texts for mark in marks(text)}

    def is_contaminated(self, text: str) -> bool:
        """Whether the text has a run, or all, of a reserved one."""
        return bool(self._marks) and not self._marks.isdisjoint(marks(text))
