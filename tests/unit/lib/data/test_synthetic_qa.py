"""`stages.lib.data.synthetic_qa`: every right answer is right, no wrong one is, and the same material gives the same
lessons.
"""

from __future__ import annotations

from collections import Counter

import pytest

from stages.lib.data.documentation_facts import DocumentationFacts, Parameter, extract_facts
from stages.lib.data.synthetic_qa import (
    ABOUT_DOCUMENTS,
    OPTIONS,
    TEXT_EDITING,
    WORDS,
    QuestionAnswer,
    QuestionGenerator,
    distinct_questions,
    generate_questions,
)
from tests.support.raw_pages import TUTORIAL as PAGE


@pytest.fixture(scope="module")
def material() -> DocumentationFacts:
    pages = [PAGE.replace("{n}", str(n)) for n in range(30)]
    sentences = [
        "The cat sat on a mat in the sun today.",
        "This is a line of some words that we count.",
        "It is the end of it all for now.",
        "a a a a b c.",
    ]
    pages += [sentence.capitalize() if number < 3 else sentence for number, sentence in enumerate(sentences)]
    return extract_facts({"text": page} for page in pages)


def made(
    material: DocumentationFacts, kinds: tuple = ABOUT_DOCUMENTS + TEXT_EDITING, seed: int = 1
) -> list[QuestionAnswer]:
    return list(generate_questions(QuestionGenerator(material, 6, seed), kinds))


def test_wrong_answers_are_wrong(material: DocumentationFacts) -> None:
    found = made(material)
    assert {lesson.kind for lesson in found} == {
        "type",
        "role",
        "section",
        "meaning",
        "repeat",
        "first",
        "last",
        "count",
    }
    for lesson in found:
        assert lesson.fact not in lesson.wrong, lesson
        assert lesson.wrong
        assert lesson.answer(lesson.fact, False) == lesson.fact
        assert lesson.fact in lesson.answer(lesson.fact, True) != lesson.fact


def test_editing_tasks_are_done_right(material: DocumentationFacts) -> None:
    for lesson in made(material, TEXT_EDITING):
        words = lesson.question.partition(": ")[2].split()
        assert WORDS[0] <= len(words) <= WORDS[1]
        right = {"repeat": " ".join(words), "first": words[0], "last": words[-1], "count": str(len(words))}[lesson.kind]
        assert lesson.fact == right
        if lesson.kind in ("first", "last"):
            assert set(lesson.wrong) == set(words) - {right}


def test_what_is_asked_about_documents_stands_in_them(material: DocumentationFacts) -> None:
    kinds = {(f"{p.name}: {p.description}", p.kind) for p in material.parameters}
    for lesson in made(material, ABOUT_DOCUMENTS):
        if lesson.kind == "type":
            assert (lesson.question.removeprefix("Which type is "), lesson.fact) in kinds
        if lesson.kind == "role":
            assert lesson.question.removeprefix("What is ").removesuffix("?") in material.names[lesson.fact]
        if lesson.kind == "section":
            assert lesson.question.removeprefix("Which section? ") in material.lines[lesson.fact]


def test_labels_are_balanced_and_a_text_with_two_labels_is_not_asked() -> None:
    parameters = [
        Parameter(f"a{n}", kind, f"Text {n}.")
        for n, kind in enumerate(["int", "int", "int", "int", "int", "str", "bool", "float"])
    ]
    parameters += [Parameter("both", "int", "Same text."), Parameter("both", "str", "Same text.")]
    asked = made(DocumentationFacts(parameters=parameters), (QuestionGenerator.type,))
    assert all("both" not in lesson.question for lesson in asked)
    assert Counter(lesson.fact for lesson in asked)["int"] <= 2  # the others have run out: guessing never pays
    assert len({lesson.fact for lesson in asked}) == OPTIONS


def test_the_same_seed_gives_the_same_lessons(material: DocumentationFacts) -> None:
    assert made(material, seed=3) == made(material, seed=3)
    assert made(material, seed=4) != made(material, seed=3)


def test_each_question_is_asked_once() -> None:
    twice = [
        QuestionAnswer("x", "What  is it?", "a", ("b",), "{}"),
        QuestionAnswer("x", "what is it?", "c", ("b",), "{}"),
        QuestionAnswer("x", "And that?", "d", ("b",), "{}"),
    ]
    assert [lesson.fact for lesson in distinct_questions(twice)] == ["a", "d"]


def test_no_material_gives_no_lesson() -> None:
    assert made(DocumentationFacts()) == []
