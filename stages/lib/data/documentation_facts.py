"""What questions are made of: documentation read for the structure that its authors gave it.

Four kinds of material, each with an answer that the text itself states: a line and the section that it stands in, a
parameter with its type and description, a name and what Sphinx's role says it is (:class:`Path`), a sentence.
Docstrings of numpy's and of Google's style are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

LINE, SENTENCE = (12, 70), (30, 110)
"""Shortest and longest text, characters: a small model has a short context, and learns from answers, not from long
questions.
"""

SAME_SECTION = {
    "Args": "Parameters",
    "Arguments": "Parameters",
    "Return": "Returns",
    "Example": "Examples",
    "Usage": "Examples",
}
"""Headings of the two styles that mean the same."""
UNASKED = frozenset({"Attributes", "Yields"})
"""Sections that end the one before, and whose lines look like those of another: nobody could tell them apart."""
SAME_KIND = {"boolean": "bool", "integer": "int", "string": "str", "array": "array_like", "ndarray": "array_like"}
"""Words for a type that mean the same in documentation."""
_HEADING = re.compile(
    r"^(?P<indent> *)(?P<name>Parameters|Args|Arguments|Returns?|Yields|Raises|Examples?|Usage|Notes|See"
    r" Also|References|Attributes)"
    r"(?::? *\n(?P=indent)(?:-{3,}|={3,}) *\n|:{1,2} *\n)",
    re.M,
)
_PARAMETER = re.compile(
    r"^(?P<indent> *)(?P<name>[A-Za-z]\w*)(?: ?: (?P<numpy>[^\n]{2,60})\n +| \((?P<google>[^\n]{2,60}?)\): *)"
    r"(?P<text>[A-Z`][^\n]*(?:\n(?P=indent) +[^\s>][^\n]*)*)",
    re.M,
)
_ROLE = re.compile(r":(?P<role>class|func|meth|attr|exc|mod|data):`[~.!]*(?P<name>[A-Za-z_][\w.]{2,40})(?:\(\))?`")
_TYPE = re.compile(r":class:`~?\.?|`|<class '|^an? |^optional\[|^\{", re.I)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_PROSE = re.compile(r"[A-Z][ -~]+[.!?:]")
_PRINTABLE = re.compile(r"[ -~]+")


@dataclass(frozen=True)
class Parameter:
    """One documented parameter. kind: the first word of its type, such as 'int'."""

    name: str
    kind: str
    description: str


@dataclass
class DocumentationFacts:
    """What a set of documents holds, in document order. lines: {section: lines}; names: {role: names}."""

    lines: dict[str, list[str]] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    parameters: list[Parameter] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)


def extract_facts(documents: Iterable[dict[str, str]]) -> DocumentationFacts:
    """Read all documents."""
    out = DocumentationFacts()
    for document in documents:
        text = document["text"]
        for section, lines in _sections(text):
            out.lines.setdefault(section, []).extend(lines)
        for match in _ROLE.finditer(text):
            out.names.setdefault(match["role"], []).append(match["name"])
        out.parameters.extend(_parameters(text))
        out.sentences.extend(_sentences(text))
    return out


def _sections(text: str) -> Iterator[tuple[str, list[str]]]:
    """(heading, its lines): up to the next heading, and in Google's style to the end of the indented block."""
    headings = list(_HEADING.finditer(text))
    for number, match in enumerate(headings):
        end = headings[number + 1].start() if number + 1 < len(headings) else len(text)
        lines = text[match.end() : end].split("\n")
        if match.group().rstrip().endswith(":"):
            deeper = match["indent"] + " "
            lines = lines[
                : next((i for i, line in enumerate(lines) if line.strip() and not line.startswith(deeper)), len(lines))
            ]
        if match["name"] not in UNASKED:
            stripped = (line.strip() for line in lines)
            usable = [line for line in stripped if LINE[0] <= len(line) <= LINE[1] and _PRINTABLE.fullmatch(line)]
            yield SAME_SECTION.get(match["name"], match["name"]), usable


def _parameters(text: str) -> Iterator[Parameter]:
    for match in _PARAMETER.finditer(text):
        kind = re.match(r"[\w.]+", _TYPE.sub("", match["numpy"] or match["google"]))
        description = _SENTENCE_END.split(" ".join(match["text"].split()))[0]
        whole = LINE[0] <= len(description) <= LINE[1] and not description.endswith(("e.g.", "i.e."))
        if kind and whole and _PRINTABLE.fullmatch(description):
            word = kind.group().lower()
            yield Parameter(match["name"], SAME_KIND.get(word, word), description)


def _sentences(text: str) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", text):
        if block[:1].isspace() or ">>>" in block or "\n " in block or "---" in block:
            continue
        for sentence in _SENTENCE_END.split(" ".join(block.split())):
            if SENTENCE[0] <= len(sentence) <= SENTENCE[1] and _PROSE.fullmatch(sentence):
                yield sentence
