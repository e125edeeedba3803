"""The five benchmarks of the paper's Tables 2 and 3: their data sets, schemas and prompts, as lm-evaluation-harness
reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from stages.capability.spec import DATA_SETS

__all__ = ["DATA_SETS", "SCHEMAS", "BenchmarkData", "Row", "fingerprints", "render"]

Row = Mapping[str, Any]

_S = pa.string()
SCHEMAS: dict[str, pa.Schema] = {
    "allenai/ai2_arc": pa.schema(
        [
            ("id", _S),
            ("question", _S),
            ("choices", pa.struct([("text", pa.list_(_S)), ("label", pa.list_(_S))])),
            ("answerKey", _S),
        ]
    ),
    "Rowan/hellaswag": pa.schema(
        [
            ("ind", pa.int32()),
            ("activity_label", _S),
            ("ctx_a", _S),
            ("ctx_b", _S),
            ("ctx", _S),
            ("endings", pa.list_(_S)),
            ("source_id", _S),
            ("split", _S),
            ("split_type", _S),
            ("label", _S),
        ]
    ),
    "cais/mmlu": pa.schema([("question", _S), ("subject", _S), ("choices", pa.list_(_S)), ("answer", pa.int64())]),
    "baber/piqa": pa.schema([("goal", _S), ("sol1", _S), ("sol2", _S), ("label", pa.int64())]),
    "allenai/winogrande": pa.schema([("sentence", _S), ("option1", _S), ("option2", _S), ("answer", _S)]),
}
"""Columns of the data sets on the hub."""

RUN = 13
"""Words in a run that train and test must not share (GPT-3's decontamination)."""


@dataclass
class BenchmarkData:
    """One data set. configs: {configuration: {split: rows}}, as it is mirrored; train and test: the rows to
    keep apart.
    """

    id: str
    configs: dict[str, dict[str, pa.Table]] = field(default_factory=dict)
    train: list[Row] = field(default_factory=list)
    test: list[Row] = field(default_factory=list)
    revision: str | None = None
    license: str = ""


# --- prompts: equal by test to what the harness makes of the same row ------------------------------------------------


def render(id: str, row: Row) -> str:
    """Zero-shot prompt and right answer of one row of data set `id`, exactly as the harness would score it."""
    return _RENDER[id](row)


def _arc(row: Row) -> str:
    return f"Question: {row['question']}\nAnswer: {_arc_answer(row)}"


def _arc_answer(row: Row) -> str:
    choices = row["choices"]
    return choices["text"][list(choices["label"]).index(row["answerKey"])]


def _hellaswag(row: Row) -> str:
    query = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return f"{_unbracketed(query)} {_unbracketed(row['endings'][int(row['label'])])}"


def _unbracketed(text: str) -> str:
    """WikiHow's brackets removed as the harness does it (lm_eval/tasks/hellaswag/utils.py)."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _piqa(row: Row) -> str:
    return f"Question: {row['goal']}\nAnswer: {_piqa_answer(row)}"


def _piqa_answer(row: Row) -> str:
    return row["sol2" if row["label"] else "sol1"]


def _winogrande(row: Row) -> str:
    before, _, after = row["sentence"].partition("_")
    return f"{before}{row['option' + row['answer']]} {after.strip()}"


def _mmlu(row: Row) -> str:
    subject = row["subject"].replace("_", " ")  # rows of auxiliary_train name none
    head = f"The following are multiple choice questions (with answers) about {subject}.\n\n" if subject else ""
    options = "".join(f"{letter}. {choice}\n" for letter, choice in zip("ABCD", row["choices"], strict=True))
    return f"{head}{row['question'].strip()}\n{options}Answer: {'ABCD'[row['answer']]}"


_RENDER = {
    "allenai/ai2_arc": _arc,
    "Rowan/hellaswag": _hellaswag,
    "baber/piqa": _piqa,
    "allenai/winogrande": _winogrande,
    "cais/mmlu": _mmlu,
}


# --- what train and test must not share ------------------------------------------------------------------------------

_PARTS = {
    "allenai/ai2_arc": lambda r: (r["question"], _arc_answer(r)),
    "Rowan/hellaswag": lambda r: (r["ctx"], r["endings"][int(r["label"])]),
    "baber/piqa": lambda r: (r["goal"], _piqa_answer(r)),
    "allenai/winogrande": lambda r: (r["sentence"], _winogrande(r)),  # filled: the blank would hide thirteen words
    "cais/mmlu": lambda r: (r["question"], r["choices"][r["answer"]]),
}


def fingerprints(id: str, row: Row) -> Iterator[str]:
    """What two rows have in common when one leaks the other: the normalized question, or 13 words of question and
    answer.

    The words of a prompt that all rows share ("Answer:", a list of options) are no part of it.
    """
    question, answer = (" ".join(re.findall(r"\w+", part.lower())) for part in _PARTS[id](row))
    yield question or " ".join(_PARTS[id](row))  # a question may consist of signs alone
    words = f"{question} {answer}".split()
    yield from (" ".join(words[at : at + RUN]) for at in range(len(words) - RUN + 1))
