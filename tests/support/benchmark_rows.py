"""Rows in the five benchmarks' schemas, full of what breaks prompts, and a mirror of the hub that holds them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.capability.benchmarks import SCHEMAS
from stages.lib.formats.suites import DataSet, Suite, write_data_set, write_suite

WORDS = [
    "the",
    "cat",
    "[substeps]",
    "sat",
    "on",
    "a",
    "mat",
    "[title]",
    "of",
    "wool,",
    "quickly;",
    "naïve",
    "café",
    "数学",
    "🙂",
    "x_y",
    "Question:",
    "Answer:",
    "A.",
    "{{brace}}",
    "it's",
    "",
    "two-spaces",
    "%s",
    "\\n",
    "then",
    "one",
    "or",
    "2",
    "more",
    "dogs",
    "ran",
    "to",
    "see",
    "what",
    "3.5",
    "lions",
    "had",
    "eaten",
    "before",
    "noon",
    "[header]",
    "indeed",
]
SUBJECTS = ("college_computer_science", "high_school_computer_science")

Row = dict[str, Any]


def sentence(rng: random.Random, least: int = 3, most: int = 14) -> str:
    """Words with brackets, signs and, sometimes, edges of white space."""
    text = " ".join(rng.choices(WORDS, k=rng.randint(least, most)))
    return rng.choice(["", "", "", " "]) + text + rng.choice(["", "", ".", " "])


def row(id: str, rng: random.Random, subject: str = SUBJECTS[0]) -> Row:
    """One row of a data set."""
    if id == "allenai/ai2_arc":
        labels = rng.choice([list("ABCD"), list("1234"), list("ABC")])
        choices = {"text": [sentence(rng, 1, 4).strip() or "none" for _ in labels], "label": labels}
        return {
            "id": f"q{rng.random()}",
            "question": sentence(rng),
            "choices": choices,
            "answerKey": rng.choice(labels),
        }
    if id == "Rowan/hellaswag":
        context, tail = sentence(rng), rng.choice(["", sentence(rng, 1, 3)])
        endings = [sentence(rng, 2, 6) for _ in range(4)]
        about = {
            "activity_label": rng.choice(["Running", "Home and Garden"]),
            "ctx_a": context,
            "ctx_b": tail,
            "ctx": f"{context} {tail}",
        }
        kind = {"ind": rng.randrange(9999), "source_id": "s", "split": "train", "split_type": "indomain"}
        return {**about, **kind, "endings": endings, "label": str(rng.randrange(4))}
    if id == "cais/mmlu":
        return {
            "question": sentence(rng),
            "subject": subject,
            "choices": [sentence(rng, 1, 3) for _ in range(4)],
            "answer": rng.randrange(4),
        }
    if id == "baber/piqa":
        return {
            "goal": sentence(rng),
            "sol1": sentence(rng, 2, 5).strip(),
            "sol2": sentence(rng, 2, 5).strip(),
            "label": rng.randrange(2),
        }
    words = [word for word in sentence(rng, 6, 14).split() if "_" not in word]
    at = rng.randrange(1, len(words) + 1)
    blank = " ".join([*words[:at], "_", *words[at:]])
    return {"sentence": blank, "option1": "Maria", "option2": "Sarah", "answer": rng.choice("12")}


def rows(id: str, count: int, seed: int, subject: str = SUBJECTS[0]) -> list[Row]:
    """Rows that depend on the seed alone."""
    rng = random.Random(f"{id} {seed} {subject}")
    return [row(id, rng, subject) for _ in range(count)]


def table(id: str, of: list[Row]) -> pa.Table:
    """Rows as the hub's table."""
    return pa.Table.from_pylist(of, schema=SCHEMAS[id])


def configs(id: str, count: int) -> dict[str, dict[str, pa.Table]]:
    """Configurations and splits that the data set has on the hub, with `count` rows each, all of them different."""
    names = {
        "allenai/ai2_arc": (("ARC-Easy", "ARC-Challenge"), ("train", "validation", "test")),
        "Rowan/hellaswag": (("default",), ("train", "validation")),
        "baber/piqa": (("default",), ("train", "validation")),
        "allenai/winogrande": (("winogrande_xl",), ("train", "validation")),
        "cais/mmlu": (SUBJECTS, ("dev", "validation", "test")),
    }[id]
    made = {
        config: {split: table(id, rows(id, count, 10 * i + j, config)) for j, split in enumerate(names[1])}
        for i, config in enumerate(names[0])
    }
    return made | ({"auxiliary_train": {"train": table(id, rows(id, count, 99, ""))}} if id == "cais/mmlu" else {})


def write_mirror(
    folder: Path, data_sets: Mapping[str, Mapping[str, Mapping[str, pa.Table]]], origin: Any = "hub"
) -> Suite:
    """Write data sets and their listing under `folder`."""
    listing = [DataSet(id=id, origin=origin, rows=write_data_set(folder, id, data)) for id, data in data_sets.items()]
    suite = Suite(data_sets=tuple(listing), train_test_overlap=0)
    write_suite(folder, suite)
    return suite
