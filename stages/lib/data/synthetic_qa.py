"""Questions about documentation with one right answer and several wrong ones, for post-training where no data set can
be had.

| kind | question | right answer | wrong answers |
| --- | --- | --- | --- |
| `type` | which type a described parameter has | its type | other types |
| `role` | what a name is | its role in the markup (class, func, meth ..) | other roles |
| `section` | in which section a line stands | the heading | other headings |
| `meaning` | what a parameter means | its description | other parameters' descriptions |
| `repeat`, `first`, `last`, `count` | repeat words, name the first, the last, count them | done | done wrongly |

The first four are `ABOUT_DOCUMENTS`, the last four `TEXT_EDITING`: two distributions of instructions, as the paper's
two branches have (paper 4). Every right answer stands in a document. An answer comes in two styles: the bare fact, or a
sentence.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from stages.lib.data.documentation_facts import DocumentationFacts
from stages.lib.formats.examples import fingerprint

T = TypeVar("T")

OPTIONS = 4
"""Labels of a kind that questions ask for, at least."""
WORDS = (3, 7)
"""Words that an editing task is about, fewest and most: a small model has a short memory."""
SAMPLE = 8
"""Wrong answers drawn of those that there are."""


@dataclass(frozen=True)
class QuestionAnswer:
    """One question. sentence: the answer in a full sentence, with `{}` for the fact."""

    kind: str
    question: str
    fact: str
    wrong: tuple[str, ...]
    sentence: str

    def answer(self, fact: str, full: bool) -> str:
        """A fact in one of the two styles."""
        return self.sentence.format(fact) if full else fact


class QuestionGenerator:
    """Makes lessons of one set of documents. Same material and seed: same lessons, in the same order."""

    def __init__(self, material: DocumentationFacts, labels: int, seed: int) -> None:
        self.material, self.labels, self.rng = material, labels, random.Random(seed)

    def type(self) -> Iterator[QuestionAnswer]:
        """Types of parameters."""
        pools: dict[str, list[str]] = {}
        for parameter in dict.fromkeys(self.material.parameters):
            pools.setdefault(parameter.kind, []).append(f"{parameter.name}: {parameter.description}")
        yield from self._labelled("type", "Which type is {}", pools, "The type is {}.")

    def role(self) -> Iterator[QuestionAnswer]:
        """Roles of names."""
        yield from self._labelled("role", "What is {}?", self.material.names, "It is a {}.")

    def section(self) -> Iterator[QuestionAnswer]:
        """Sections of lines."""
        yield from self._labelled("section", "Which section? {}", self.material.lines, "It stands in {}.")

    def meaning(self) -> Iterator[QuestionAnswer]:
        """Descriptions of parameters."""
        parameters = self._shuffled(dict.fromkeys(self.material.parameters))
        descriptions = list(dict.fromkeys(p.description for p in parameters))
        for parameter in parameters:
            wrong = [other for other in self._some(descriptions) if other != parameter.description]
            yield QuestionAnswer(
                "meaning", f"What does {parameter.name} mean?", parameter.description, tuple(wrong), "It means: {}"
            )

    def _labelled(
        self, kind: str, ask: str, pools: Mapping[str, Sequence[str]], sentence: str
    ) -> Iterator[QuestionAnswer]:
        """(label, text) of the commonest labels, in turn, each text once and only where its label is certain."""
        of = Counter(text for texts in pools.values() for text in dict.fromkeys(texts))
        commonest = sorted(sorted(pools), key=lambda name: -len(set(pools[name])))[: self.labels]
        left = {
            label: iter(self._shuffled(t for t in dict.fromkeys(pools[label]) if of[t] == 1)) for label in commonest
        }
        while len(left) >= min(OPTIONS, len(commonest)) and left:
            for label in list(left):
                if (text := next(left[label], None)) is None:
                    del left[label]
                else:
                    yield QuestionAnswer(
                        kind, ask.format(text), label, tuple(name for name in commonest if name != label), sentence
                    )

    def repeat(self) -> Iterator[QuestionAnswer]:
        """Repeating words."""
        for words in self._words():
            wrong = [" ".join(_swapped(words, at)) for at in range(len(words) - 1) if words[at] != words[at + 1]]
            yield QuestionAnswer(
                "repeat", f"Repeat: {' '.join(words)}", " ".join(words), (*wrong, " ".join(words[1:])), "Here it is: {}"
            )

    def first(self) -> Iterator[QuestionAnswer]:
        """The first word."""
        yield from self._picked("first", 0)

    def last(self) -> Iterator[QuestionAnswer]:
        """The last word."""
        yield from self._picked("last", -1)

    def _picked(self, which: str, at: int) -> Iterator[QuestionAnswer]:
        for words in self._words():
            wrong = tuple(dict.fromkeys(word for word in words if word != words[at]))
            if wrong:
                yield QuestionAnswer(
                    which,
                    f"{which.capitalize()} word: {' '.join(words)}",
                    words[at],
                    wrong,
                    f"The {which} word is {{}}",
                )

    def count(self) -> Iterator[QuestionAnswer]:
        """Counting words."""
        numbers = range(WORDS[0], WORDS[1] + 1)
        for words in self._words():
            wrong = tuple(str(n) for n in numbers if n != len(words))
            yield QuestionAnswer(
                "count", f"How many words: {' '.join(words)}", str(len(words)), wrong, "There are {} words."
            )

    def _words(self) -> Iterator[list[str]]:
        """A few words from the beginning of each sentence."""
        for sentence in self._shuffled(dict.fromkeys(self.material.sentences)):
            words = [word.strip("`.,:;()") for word in sentence.split()[: self.rng.randint(*WORDS)]]
            if len(words) >= WORDS[0] and all(word.isalpha() for word in words):
                yield words

    def _shuffled(self, texts: Iterable[T]) -> list[T]:
        out = list(texts)
        self.rng.shuffle(out)
        return out

    def _some(self, texts: Sequence[str]) -> list[str]:
        return self.rng.sample(texts, min(SAMPLE, len(texts)))


def _swapped(words: list[str], at: int) -> list[str]:
    """The words with two neighbours exchanged."""
    return [*words[:at], words[at + 1], words[at], *words[at + 2 :]]


ABOUT_DOCUMENTS: tuple[Callable[[QuestionGenerator], Iterator[QuestionAnswer]], ...] = (
    QuestionGenerator.type,
    QuestionGenerator.role,
    QuestionGenerator.section,
    QuestionGenerator.meaning,
)
TEXT_EDITING: tuple[Callable[[QuestionGenerator], Iterator[QuestionAnswer]], ...] = (
    QuestionGenerator.repeat,
    QuestionGenerator.first,
    QuestionGenerator.last,
    QuestionGenerator.count,
)


def generate_questions(
    teacher: QuestionGenerator, kinds: Sequence[Callable[[QuestionGenerator], Iterator[QuestionAnswer]]]
) -> Iterator[QuestionAnswer]:
    """Lessons of all kinds in turn, until each has run out."""
    left = [kind(teacher) for kind in kinds]
    while left:
        for stream in list(left):
            if (lesson := next(stream, None)) is None:
                left.remove(stream)
            else:
                yield lesson


def distinct_questions(rows: Iterable[QuestionAnswer]) -> Iterator[QuestionAnswer]:
    """The first lesson of each question."""
    asked: set[bytes] = set()
    for lesson in rows:
        mark = fingerprint(lesson.question)
        if mark not in asked:
            asked.add(mark)
            yield lesson
