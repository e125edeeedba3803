"""`stages.lib.formats.examples`: rows come back as they were written, and what cannot be learned from is named and
counted.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.lib.formats import examples
from stages.lib.formats.examples import (
    Conversation,
    ConversationWriter,
    Message,
    Preference,
    PreferenceWriter,
    Problem,
    ProblemWriter,
    Sieve,
    assistant,
    conversation_fault,
    held_out,
    normalize,
    preference_fault,
    problem_fault,
    question,
    read_conversations,
    read_preferences,
    read_problems,
    user,
    whole,
)
from tests.support.examples import max_examples

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
MESSAGES = st.lists(st.fixed_dictionaries({"role": st.sampled_from(examples.ROLES), "content": TEXT}), max_size=4)
LABELS = {"id": TEXT, "source": TEXT, "license": TEXT}


def system(content: str) -> Message:
    return {"role": "system", "content": content}


def conversation(*messages: Any) -> Conversation:
    return {"id": "1", "messages": list(messages), "source": "s", "license": ""}


def preference(prompt: list[Any], chosen: list[Any], rejected: list[Any]) -> Preference:
    return {"id": "1", "prompt": prompt, "chosen": chosen, "rejected": rejected, "source": "s", "license": ""}


def problem(text: Any = "2 + 2?", answer: Any = "4", solution: Any = "") -> Problem:
    return {"id": "1", "problem": text, "answer": answer, "solution": solution, "source": "s", "license": ""}


@max_examples(30)
@given(
    st.lists(st.fixed_dictionaries({"messages": MESSAGES, **LABELS}), max_size=4),
    st.lists(
        st.fixed_dictionaries({"prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES, **LABELS}), max_size=4
    ),
    st.lists(st.fixed_dictionaries({"problem": TEXT, "answer": TEXT, "solution": TEXT, **LABELS}), max_size=4),
)
def test_any_row_comes_back(conversations: list[Any], preferences: list[Any], problems: list[Any]) -> None:
    for rows, writer, read in (
        (conversations, ConversationWriter, read_conversations),
        (preferences, PreferenceWriter, read_preferences),
        (problems, ProblemWriter, read_problems),
    ):
        with tempfile.TemporaryDirectory() as folder:
            with writer(Path(folder)) as out:
                for row in rows:
                    out.add(row)
            assert list(read(Path(folder))) == rows
            assert out.rows == len(rows)


@pytest.mark.parametrize(
    ("writer", "columns"),
    [
        (ConversationWriter, ["id", "messages", "source", "license"]),
        (PreferenceWriter, ["id", "prompt", "chosen", "rejected", "source", "license"]),
        (ProblemWriter, ["id", "problem", "answer", "solution", "source", "license"]),
    ],
)
def test_the_columns_are_those_of_the_artifact(tmp_path: Path, writer: type[Any], columns: list[str]) -> None:
    with writer(tmp_path):
        pass
    assert pq.read_schema(tmp_path / "part-00000.parquet").names == columns


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        with ConversationWriter(tmp_path / name) as writer:
            for n in range(200):
                writer.add(conversation(user(f"question {n}"), assistant("answer " * n)))
        assert writer.text_bytes == sum(len(f"userassistant1squestion {n}") + 7 * n for n in range(200))
        digests.append(hashlib.sha256((tmp_path / name / "part-00000.parquet").read_bytes()).hexdigest())
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([user("a"), assistant("b")], None),
        ([system("s"), user("a"), assistant("b"), user("c"), assistant("d")], None),
        ([], "no turns"),
        ([user("a")], "no assistant turn"),
        ([system("s")], "no assistant turn"),
        ([assistant("b"), user("a")], "roles out of order"),
        ([user("a"), user("a"), assistant("b")], "roles out of order"),
        ([user("a"), assistant("b"), assistant("b")], "roles out of order"),
        ([user("a"), system("s"), assistant("b")], "roles out of order"),
        ([user("a"), assistant("b"), user("c")], "ends with a user's turn"),
        ([user("a"), assistant(" \n")], "empty content"),
        ([user(""), assistant("b")], "empty content"),
        ([{"role": "tool", "content": "x"}, assistant("b")], "unknown role"),
        ([user("a"), {"role": "assistant", "content": None}], "content is not text"),
        ([user("a"), assistant("\ud800")], "invalid characters"),
    ],
)
def test_faults_of_a_conversation(messages: list[Any], fault: str | None) -> None:
    assert conversation_fault(conversation(*messages)) == fault


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "fault"),
    [
        ([user("a")], [assistant("b")], [assistant("c")], None),
        ([system("s"), user("a")], [assistant("b"), user("d"), assistant("e")], [assistant("b")], None),
        ([user("a")], [], [assistant("c")], "empty chosen"),
        ([user("a")], [assistant("b")], [assistant("  ")], "empty rejected"),
        ([user("a")], [assistant("b")], [user("c")], "empty rejected"),
        ([user("a")], [assistant("The  Answer")], [assistant("the answer\n")], "identical pair"),
        ([], [assistant("b")], [assistant("c")], "no prompt"),
        ([system("s")], [assistant("b")], [assistant("c")], "roles out of order"),
        ([user("a"), assistant("x")], [assistant("b")], [assistant("c")], "roles out of order"),
        ([user("a")], [user("x"), assistant("b")], [assistant("c")], "roles out of order"),
        ([user("a")], [assistant("b"), user("x")], [assistant("c")], "ends with a user's turn"),
        ([user(" ")], [assistant("b")], [assistant("c")], "empty content"),
    ],
)
def test_faults_of_a_pair(prompt: list[Any], chosen: list[Any], rejected: list[Any], fault: str | None) -> None:
    assert preference_fault(preference(prompt, chosen, rejected)) == fault


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (problem(), None),
        (problem(answer=" "), "no answer"),
        (problem(text=""), "no problem"),
        (problem(answer=None), "content is not text"),
        (problem(solution="\udfff"), "invalid characters"),
    ],
)
def test_faults_of_a_problem(row: Problem, fault: str | None) -> None:
    assert problem_fault(row) == fault


def test_a_sieve_counts_by_reason_and_lets_each_row_through_once() -> None:
    sieve = Sieve(problem_fault)
    rows = [problem("A?"), problem("a?  ", answer="5"), problem("b?", answer=""), problem("b?"), problem("")]
    assert [row["problem"] for row in sieve(rows)] == ["A?", "b?"]
    assert (sieve.kept, sieve.removed) == (2, {"duplicate": 1, "no answer": 1, "no problem": 1})


def test_sameness_sees_through_case_space_and_compatibility_but_not_through_signs() -> None:
    assert normalize("  Ｗｈａｔ IS\n²?") == normalize("what is 2?")
    assert question(problem("3 + 5")) != question(problem("3 - 5"))
    pair = preference([user("q")], [assistant("a")], [assistant("b")])
    assert whole(pair) != whole(preference([user("q")], [assistant("b")], [assistant("a")]))
    assert question(pair) == question(conversation(system("s"), user("Q"), assistant("x")))


def test_a_question_is_on_one_side_of_a_split_whatever_the_rest_of_the_row() -> None:
    rows = [conversation(user(f"question {n}"), assistant("x")) for n in range(2000)]
    sides = [held_out(row, 0.1, seed=1) for row in rows]
    assert 150 < sum(sides) < 250
    assert [
        held_out(conversation(user(f"QUESTION  {n}"), assistant("other")), 0.1, seed=1) for n in range(2000)
    ] == sides
    assert [held_out(row, 0.1, seed=2) for row in rows] != sides
    assert not any(held_out(row, 0.0, seed=1) for row in rows)
