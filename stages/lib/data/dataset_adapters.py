"""Rows of public data sets in the schemas of `stages.lib.formats.examples`: whatever their columns are called.

| data set | columns that are read |
| --- | --- |
| allenai/tulu-3-sft-mixture | id, messages [{role, content}], source |
| allenai/llama-3.1-tulu-3-8b-preference-mixture | id, prompt, chosen [{role, content}], rejected, source |
| BAAI/Infinity-Instruct | id, conversations [{from: human, gpt, value}] |
| open-thoughts/OpenThoughts-114k | system, conversations [{from: user, assistant, value}] |
| open-r1/OpenR1-Math-220k | problem, generations, is_reasoning_complete, correctness_{math_verify,llama}, uuid |
| agentica-org/DeepScaleR-Preview-Dataset | problem, answer, solution |
| openai/gsm8k | question, answer: the solution, and after `####` the answer itself |

A column that is missing is taken as empty; what then lacks a part has a fault, and is counted where rows are checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from stages.lib.formats.examples import Message, assistant, user

ROLE_NAMES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
}
"""Names of speakers in ShareGPT's schema and its descendants."""

_THOUGHT = re.compile(r"\s*<\|begin_of_thought\|>\s*(.*?)\s*<\|end_of_thought\|>\s*", re.S)
_SOLUTION = re.compile(r"<\|begin_of_solution\|>\s*(.*?)\s*<\|end_of_solution\|>", re.S)
_MARKER = re.compile(r"<\|(?:begin|end)_of_(?:thought|solution)\|>")

_CALCULATED = re.compile(r"<<[^<>]*>>")
"""GSM8K's notes for a calculator, inside its solutions."""

Row = Mapping[str, Any]


class BadRow(ValueError):
    """A row that cannot be read; the message is the reason that is counted."""


def conversation_messages(row: Row, drop_system: bool = False) -> list[Message]:
    """The turns of a row. Raises BadRow when it has no column of turns or no usable trace."""
    if row.get("generations"):
        messages = _verified_trace(row)
    elif row.get("messages") is not None:
        messages = _turns(row["messages"])
    elif row.get("conversations") is not None:
        messages = _turns(row["conversations"])
    else:
        raise BadRow("no turns")
    if messages and messages[0]["role"] != "system" and _filled(row.get("system")):
        messages = [cast(Message, {"role": "system", "content": row["system"]}), *messages]
    if drop_system:
        messages = [message for message in messages if message["role"] != "system"]
    return [cast(Message, {**message, "content": rewrite_thoughts(message["content"])}) for message in messages]


def _turns(turns: Any) -> list[Message]:
    """Turns of either schema: {role, content} or {from, value}."""
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise BadRow("no turns")
    out = []
    for turn in turns:
        if not isinstance(turn, Mapping):
            raise BadRow("no turns")
        role = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        out.append({"role": ROLE_NAMES.get(str(role).lower(), role), "content": content})
    return cast(list[Message], out)


def _verified_trace(row: Row) -> list[Message]:
    """OpenR1-Math: the problem, and the first generation that is complete and judged correct."""
    problem, generations = row.get("problem"), row["generations"]
    if not _filled(problem):
        raise BadRow("no problem")
    complete = _flags(row.get("is_reasoning_complete"), len(generations), unknown=True)
    by_rule, by_model = row.get("correctness_math_verify"), row.get("correctness_llama")
    judged = by_rule is not None or by_model is not None
    right = [
        a or b
        for a, b in zip(
            _flags(by_rule, len(generations), unknown=False),
            _flags(by_model, len(generations), unknown=False),
            strict=True,
        )
    ]
    for text, whole, correct in zip(generations, complete, right, strict=True):
        if _filled(text) and whole and (correct or not judged):
            return [user(cast(str, problem)), assistant(text)]
    raise BadRow("no verified trace")


def _flags(values: Any, count: int, unknown: bool) -> list[bool]:
    """Flags of the generations; None, or a list that is too short, says nothing of the rest."""
    known = [unknown if value is None else bool(value) for value in values or ()]
    return (known + [unknown] * count)[:count]


def rewrite_thoughts(text: Any) -> Any:
    """OpenThoughts' markers as `<think>..</think>` and the solution after it (docs/recipe.md).

    Raises BadRow when one is missing.
    """
    if not isinstance(text, str) or not _MARKER.search(text):
        return text
    text = _THOUGHT.sub(lambda match: f"<think>\n{match.group(1)}\n</think>\n\n", text)
    text = _SOLUTION.sub(lambda match: match.group(1), text).strip()
    if _MARKER.search(text):
        raise BadRow("broken thought markers")
    return text


def preference_parts(row: Row) -> tuple[list[Message], list[Message], list[Message]]:
    """(prompt, chosen, rejected): what both answers begin with, and how each goes on."""
    chosen, rejected = (
        _turns(row.get(name) or []) if not isinstance(row.get(name), str) else [assistant(row[name])]
        for name in ("chosen", "rejected")
    )
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared] and _asks(chosen, shared):
        shared += 1
    while shared and chosen[shared - 1]["role"] == "assistant":
        shared -= 1
    prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if not prompt and _filled(row.get("prompt")):
        prompt = [user(row["prompt"])]
    elif not prompt and isinstance(row.get("prompt"), list):
        prompt = _turns(row["prompt"])
    return prompt, chosen, rejected


def _asks(turns: list[Message], at: int) -> bool:
    """Whether something follows: the last turn is never part of the prompt, even if both answers are the same."""
    return at < len(turns) - 1


def problem_parts(row: Row) -> tuple[str, str, str]:
    """(problem, answer, solution), '' for what there is not."""
    problem = _first(row, "problem", "question", "prompt")
    answer = _first(row, "answer", "final_answer", "expected_answer", "ground_truth")
    solution = _first(row, "solution", "ground_truth_solution", "deepseek_solution")
    worked, mark, final = answer.rpartition("\n#### ")
    if mark and not solution:
        return problem, final.strip(), _CALCULATED.sub("", worked).strip()
    return problem, answer, solution


def _first(row: Row, *names: str) -> str:
    for name in names:
        value = row.get(name)
        if isinstance(value, bool):
            continue
        if isinstance(value, int | float):
            return str(value)
        if _filled(value):
            return cast(str, value)
    return ""


def _filled(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def row_id(row: Row, place: int) -> str:
    """The row's place in what was taken, which is unique, and its own id, where it has one."""
    given_id = next((str(row[name]).strip() for name in ("id", "uuid") if isinstance(row.get(name), str | int)), "")
    return _plain(f"{place}/{given_id}") if given_id else str(place)


def row_source(row: Row, data_set: str) -> str:
    """The data set, with the part of it that the row says it is from."""
    return _plain(f"{data_set}/{row['source'].strip()}") if _filled(row.get("source")) else data_set


def _plain(name: str) -> str:
    """A name with '?' for what UTF-8 cannot hold: its row is usable."""
    return name.encode("utf-8", "replace").decode()
