"""`stages.lib.data.dataset_adapters`: rows in the schemas of the hub's data sets become ours; what cannot be read says
why.
"""

from __future__ import annotations

from typing import Any

import pytest

from stages.lib.data.dataset_adapters import (
    BadRow,
    conversation_messages,
    preference_parts,
    problem_parts,
    rewrite_thoughts,
    row_id,
    row_source,
)
from stages.lib.formats.examples import assistant, user


def test_messages_of_tulu() -> None:
    row = {
        "id": "x",
        "messages": [{"content": "q", "role": "user"}, {"content": "a", "role": "assistant"}],
        "source": "ai2/oasst",
    }
    assert conversation_messages(row) == [user("q"), assistant("a")]
    assert row_source(row, "allenai/tulu") == "allenai/tulu/ai2/oasst"
    assert row_id(row, 3) == "3/x"


def test_sharegpt_turns_of_infinity() -> None:
    row = {
        "id": 7,
        "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
        "label": {},
        "langdetect": "en",
    }
    assert conversation_messages(row) == [user("q"), assistant("a")]
    assert (row_id(row, 0), row_source(row, "BAAI/Infinity-Instruct")) == ("0/7", "BAAI/Infinity-Instruct")


def test_openthoughts_markers_become_a_thought_and_what_follows_it() -> None:
    text = (
        "<|begin_of_thought|>\n\nTry 2.\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\nIt is"
        " \\boxed{2}.\n\n<|end_of_solution|>"
    )
    row = {"system": "Think.", "conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": text}]}
    messages = conversation_messages(row)
    assert messages[0] == {"role": "system", "content": "Think."}
    assert messages[2] == assistant("<think>\nTry 2.\n</think>\n\nIt is \\boxed{2}.")
    assert conversation_messages(row, drop_system=True) == messages[1:]


@pytest.mark.parametrize(
    "text",
    [
        "<|begin_of_thought|> cut",
        "<|begin_of_thought|>x<|end_of_thought|> <|begin_of_solution|> cut",
        "x <|end_of_thought|> y",
    ],
)
def test_a_cut_thought_is_a_reason(text: str) -> None:
    with pytest.raises(BadRow, match="broken thought markers"):
        rewrite_thoughts(text)


def openr1(**over: Any) -> dict[str, Any]:
    row = {
        "problem": "1 + 1?",
        "solution": "2",
        "answer": "2",
        "uuid": "u",
        "generations": ["<think>a</think> \\boxed{3}", "<think>b</think> \\boxed{2}", "<think>c"],
        "is_reasoning_complete": [True, True, False],
        "correctness_math_verify": [False, True, True],
        "correctness_llama": None,
        "messages": [
            {"role": "user", "content": "1 + 1?"},
            {"role": "assistant", "content": "<think>a</think> \\boxed{3}"},
        ],
    }
    return {**row, **over}


def test_openr1_gives_the_first_complete_and_verified_generation() -> None:
    assert conversation_messages(openr1()) == [user("1 + 1?"), assistant("<think>b</think> \\boxed{2}")]
    by_model = openr1(correctness_math_verify=None, correctness_llama=[True, False, False])
    assert conversation_messages(by_model)[1] == assistant("<think>a</think> \\boxed{3}")
    unjudged = openr1(correctness_math_verify=None)
    assert conversation_messages(unjudged)[1] == assistant("<think>a</think> \\boxed{3}")
    assert conversation_messages(openr1(generations=None))[1] == assistant(
        "<think>a</think> \\boxed{3}"
    )  # messages, then


@pytest.mark.parametrize(
    "over",
    [
        {"is_reasoning_complete": [True, False, False]},
        {"correctness_math_verify": [False]},
        {"generations": ["", None, " "]},
    ],
)
def test_openr1_without_a_verified_generation_is_a_reason(over: dict[str, Any]) -> None:
    with pytest.raises(BadRow, match="no verified trace"):
        conversation_messages(openr1(**over))


@pytest.mark.parametrize(
    "row", [{}, {"messages": None}, {"messages": "text"}, {"conversations": ["text"]}, {"text": "x"}]
)
def test_a_row_without_turns_is_a_reason(row: dict[str, Any]) -> None:
    with pytest.raises(BadRow, match="no turns"):
        conversation_messages(row)


def test_pairs_of_tulu_part_where_the_answers_do() -> None:
    row = {"prompt": "q", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")], "source": "s"}
    assert preference_parts(row) == ([user("q")], [assistant("a")], [assistant("b")])
    long = [user("q"), assistant("x"), user("r")]
    assert preference_parts({"chosen": [*long, assistant("a")], "rejected": [*long, assistant("b")]})[0] == long
    same = [user("q"), assistant("a")]
    assert preference_parts({"chosen": same, "rejected": list(same)}) == (
        [user("q")],
        [assistant("a")],
        [assistant("a")],
    )


def test_a_shared_first_answer_is_part_of_the_prompt_only_with_the_turn_that_follows() -> None:
    chosen, rejected = (
        [user("q"), assistant("x"), user("r"), assistant("a")],
        [user("q"), assistant("x"), user("s"), assistant("b")],
    )
    assert preference_parts({"chosen": chosen, "rejected": rejected}) == ([user("q")], chosen[1:], rejected[1:])


def test_pairs_whose_answers_are_texts() -> None:
    assert preference_parts({"prompt": "q", "chosen": "a", "rejected": "b"}) == (
        [user("q")],
        [assistant("a")],
        [assistant("b")],
    )
    assert preference_parts({"prompt": "q", "chosen": "a"}) == ([user("q")], [assistant("a")], [])


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"problem": "p", "answer": "a", "solution": "s"}, ("p", "a", "s")),
        ({"question": "p", "answer": 5}, ("p", "5", "")),
        ({"problem": "p", "answer": None, "solution": "\\boxed{2}"}, ("p", "", "\\boxed{2}")),
        ({"problem": " ", "answer": True}, ("", "", "")),
        (
            {"question": "p", "answer": "2 + 3 = <<2+3=5>>5 cats.\nSo 5.\n#### 5"},
            ("p", "5", "2 + 3 = 5 cats.\nSo 5."),
        ),  # GSM8K
        ({"problem": "p", "answer": "1\n#### 2", "solution": "s"}, ("p", "1\n#### 2", "s")),
    ],
)
def test_parts_of_a_problem(row: dict[str, Any], parts: tuple[str, str, str]) -> None:
    assert problem_parts(row) == parts
