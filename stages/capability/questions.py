"""Questions in the benchmarks' schemas, made of real documents: every text and every answer stands in a document.

| task | asks | the answer is |
| --- | --- | --- |
| ARC-Easy | in which section of its documentation a line stands | the heading, of four |
| ARC-Challenge | which type a described parameter has | the type, of four |
| HellaSwag | how a sentence goes on | its second half, among copies with two neighbouring words exchanged |
| PIQA | what a name is | the role in its markup (class, func, meth ..), of two |
| Winogrande | which of two words fills the blank in a sentence | the word that stood there |
| MMLU | section of a line, role of a name; always the same four options, in alphabetical order | a letter |

They are simple enough for a model of a million parameters to learn from a few thousand examples (README.md has the
numbers): what phase 3 (paper 3.3.3) does to scores is then visible at any size.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.lib.data.documentation_facts import DocumentationFacts

CONFUSABLE = (("a", "an"), ("to", "the"), ("this", "these"), ("is", "can"), ("of", "be"), ("for", "if"))
"""Pairs of words that differ in what may stand beside them: what a model has to learn of grammar to fill a blank."""
MMLU_SUBJECTS = ("college_computer_science", "high_school_computer_science")
OPTIONS = 4

Row = dict[str, Any]


@dataclass(frozen=True)
class Labels:
    """What both splits ask for: the commonest sections, roles and types of the training documents."""

    sections: tuple[str, ...]
    roles: tuple[str, ...]
    kinds: tuple[str, ...]

    @classmethod
    def of(cls, material: DocumentationFacts, count: int) -> Labels:
        """The `count` commonest of each."""
        kinds = Counter(parameter.kind for parameter in material.parameters)
        sections, roles = (
            {label: len(set(texts)) for label, texts in texts_by_label.items()}
            for texts_by_label in (material.lines, material.names)
        )
        return cls(_commonest(sections, count), _commonest(roles, OPTIONS), _commonest(kinds, count))


def _commonest(counts: Mapping[str, int], count: int) -> tuple[str, ...]:
    return tuple(sorted(sorted(counts), key=lambda name: -counts[name])[:count])


class Maker:
    """Makes the questions of one split, each from another text. Same material, labels and seed: same questions."""

    def __init__(self, material: DocumentationFacts, labels: Labels, seed: int) -> None:
        self.material, self.labels, self.rng = material, labels, random.Random(seed)

    def arc_easy(self) -> Iterator[Row]:
        """ARC-Easy."""
        for number, (section, line) in enumerate(
            self._balanced(self._pools(self.material.lines, self.labels.sections))
        ):
            choices, at = self._choices(section, self.labels.sections)
            yield _arc_row(f"section{number}", f"Which section? {line}", choices, at)

    def arc_challenge(self) -> Iterator[Row]:
        """ARC-Challenge."""
        pools: dict[str, list[str]] = {kind: [] for kind in self.labels.kinds}
        for parameter in self.material.parameters:
            if parameter.kind in pools:
                pools[parameter.kind].append(f"{parameter.name}: {parameter.description}")
        for number, (kind, text) in enumerate(self._balanced(pools)):
            choices, at = self._choices(kind, self.labels.kinds)
            yield _arc_row(f"type{number}", f"Which type? {text}", choices, at)

    def mmlu(self) -> Iterator[Row]:
        """MMLU, one question of each subject in turn."""
        of_sections = self._lettered("Which section?", self._pools(self.material.lines, self.labels.sections[:OPTIONS]))
        of_roles = self._lettered("Which role?", self._pools(self.material.names, self.labels.roles[:OPTIONS]))
        for pair in zip(of_sections, of_roles, strict=False):
            for subject, row in zip(MMLU_SUBJECTS, pair, strict=True):
                yield {"subject": subject, **row}

    def _lettered(self, ask: str, pools: dict[str, list[str]]) -> Iterator[Row]:
        options = sorted(pools)
        for label, text in self._balanced(pools):
            yield {"question": f"{ask} {text}", "choices": options, "answer": options.index(label)}

    def hellaswag(self) -> Iterator[Row]:
        """HellaSwag."""
        texts = dict.fromkeys(
            s for s in self.material.sentences if not re.search(r"[\[\]]", s)
        )  # the harness cuts brackets out
        for number, sentence in enumerate(self._shuffled(texts)):
            words = sentence.split(" ")
            cut = len(words) // 2
            ending = words[cut:]
            wrong = list(
                dict.fromkeys(
                    " ".join(_swapped(ending, at)) for at in self.rng.sample(range(len(ending) - 1), len(ending) - 1)
                )
            )
            wrong = [other for other in wrong if other != " ".join(ending)][: OPTIONS - 1]
            if len(wrong) == OPTIONS - 1:
                endings, at = self._place(" ".join(ending), wrong)
                context = " ".join(words[:cut])
                row = {
                    "ind": number,
                    "activity_label": "Sentence",
                    "ctx_a": context,
                    "ctx_b": "",
                    "ctx": context,
                    "endings": endings,
                }
                yield {
                    **row,
                    "source_id": f"sentence~{number}",
                    "split": "machine",
                    "split_type": "indomain",
                    "label": str(at),
                }

    def piqa(self) -> Iterator[Row]:
        """PIQA."""
        pools = self._pools(self.material.names, self.labels.roles)
        for role, name in self._balanced(pools):
            (sol1, sol2), at = self._place(role, [self.rng.choice([other for other in pools if other != role])])
            yield {"goal": f"Which role? {name}", "sol1": sol1, "sol2": sol2, "label": at}

    def winogrande(self) -> Iterator[Row]:
        """Winogrande."""
        pools: dict[tuple[str, str], list[str]] = defaultdict(list)
        for sentence in self.material.sentences:
            padded = set(sentence.split(" "))
            for word, other in (pair for two in CONFUSABLE for pair in (two, two[::-1])):
                if word in padded and "_" not in sentence:
                    pools[word, other].append(sentence)
        for (word, other), sentence in self._balanced(pools):
            before, _, after = sentence.partition(f" {word} ")
            if before and len(after) >= len(sentence) // 4:
                (option1, option2), at = self._place(word, [other])
                yield {"sentence": f"{before} _ {after}", "option1": option1, "option2": option2, "answer": str(at + 1)}

    @staticmethod
    def _pools(texts: Mapping[str, list[str]], labels: Sequence[str]) -> dict[str, list[str]]:
        return {label: texts[label] for label in labels if label in texts}

    def _balanced(self, pools: Mapping[Any, list[Any]]) -> Iterator[tuple[Any, Any]]:
        """(label, text), labels in turn and each text once, until half of the labels have run out: guessing
        never pays.
        """
        left = {}
        for label, pool in pools.items():
            left[label] = iter(self._shuffled(dict.fromkeys(pool)))
        least = len(left) / 2
        while len(left) > least:
            for label in list(left):
                if (text := next(left[label], None)) is None:
                    del left[label]
                else:
                    yield label, text

    def _shuffled(self, texts: Iterable[Any]) -> list[Any]:
        out = list(texts)
        self.rng.shuffle(out)
        return out

    def _choices(self, right: str, labels: tuple[str, ...]) -> tuple[list[str], int]:
        return self._place(right, self.rng.sample([name for name in labels if name != right], OPTIONS - 1))

    def _place(self, right: str, wrong: list[str]) -> tuple[list[str], int]:
        """Options with the right one at a drawn place, and that place."""
        at = self.rng.randrange(len(wrong) + 1)
        return [*wrong[:at], right, *wrong[at:]], at


def _swapped(words: list[str], at: int) -> list[str]:
    """The words with two neighbours exchanged."""
    return [*words[:at], words[at + 1], words[at], *words[at + 2 :]]


def _arc_row(id: str, question: str, choices: list[str], at: int) -> Row:
    labels = list("ABCD")
    return {"id": id, "question": question, "choices": {"text": choices, "label": labels}, "answerKey": labels[at]}


#: (data set, configuration, maker, the split that lm-evaluation-harness scores)
TASKS: tuple[tuple[str, str, Callable[[Maker], Iterator[Row]], str], ...] = (
    ("allenai/ai2_arc", "ARC-Easy", Maker.arc_easy, "test"),
    ("allenai/ai2_arc", "ARC-Challenge", Maker.arc_challenge, "test"),
    ("Rowan/hellaswag", "default", Maker.hellaswag, "validation"),
    ("baber/piqa", "default", Maker.piqa, "validation"),
    ("allenai/winogrande", "winogrande_xl", Maker.winogrande, "validation"),
    ("cais/mmlu", "", Maker.mmlu, "test"),
)
