"""The text of an item: question and right answer of the data sets we know, all strings of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from stages.contamination.items import item_text, known_fields, read_image_splits, read_splits
from stages.core.errors import InputError
from stages.lib.formats.suites import DataSet, Suite, write_data_set, write_suite

ARC = {"question": "Which?", "choices": {"text": ["red", "blue"], "label": ["A", "B"]}, "answerKey": "B", "id": "i7"}


@pytest.mark.parametrize(
    ("data_set", "row", "text"),
    [
        ("Rowan/hellaswag", {"ctx": "He", "endings": ["sits.", "runs."], "label": "1", "ind": 4}, "He\nruns."),
        ("Rowan/hellaswag", {"ctx": "He", "endings": ["sits.", "runs."], "label": ""}, "He"),
        (
            "allenai/winogrande",
            {"sentence": "So _ won.", "option1": "Ann", "option2": "Bob", "answer": "2"},
            "So Bob won.",
        ),
        (
            "allenai/winogrande",
            {"sentence": "So _ won.", "option1": "Ann", "option2": "Bob", "answer": ""},
            "So _ won.",
        ),
        ("baber/piqa", {"goal": "Open", "sol1": "pull", "sol2": "push", "label": 0}, "Open\npull"),
        ("baber/piqa", {"goal": "Open", "sol1": "pull", "sol2": "push", "label": -1}, "Open"),
        ("allenai/ai2_arc", ARC, "Which?\nblue"),
        ("allenai/ai2_arc", ARC | {"answerKey": "E"}, "Which?"),
        ("cais/mmlu", {"question": "Q", "choices": ["a", "b"], "answer": 0, "subject": "law"}, "Q\na"),
        ("math-ai/olympiadbench", {"context": None, "question": "Q", "solution": ["s1", "s2"]}, "Q\ns1\ns2"),
        ("truthfulqa/truthful_qa", {"question": "Q", "mc1_targets": {"choices": ["x"], "labels": [1]}}, "Q"),
        ("some/thing", {"a": "x", "n": 3, "b": ["y", ""], "c": {"d": "z", "e": b"no"}}, "x\ny\nz"),
        ("openai/gsm8k", {"other": "names", "than": "ours"}, "names\nours"),
    ],
)
def test_the_text_of_an_item(data_set: str, row: dict[str, Any], text: str) -> None:
    assert item_text(data_set, row) == text


def test_fields_are_written_in_one_way() -> None:
    for name, known in known_fields().items():
        assert set(known) <= {"question", "answer", "blank"}, name
        if not isinstance(known["answer"], str):
            assert set(known["answer"]) <= {"of", "at", "labels", "columns", "first"}, name


def suite(folder: Path) -> Path:
    table = pa.table({"problem": ["p1", "p2"], "solution": ["s1", "s2"], "picture": pa.array([b"x", None])})
    rows = write_data_set(folder, "EleutherAI/hendrycks_math", {"algebra": {"test": table, "train": table}})
    write_suite(folder, Suite(data_sets=(DataSet(id="EleutherAI/hendrycks_math", origin="machine", rows=rows),)))
    return folder


def test_the_splits_that_are_scored_are_read(tmp_path: Path) -> None:
    (split,) = read_splits(suite(tmp_path), ("train",))
    assert (split.config, split.split, split.origin, split.texts) == (
        "algebra",
        "test",
        "machine",
        ["p1\ns1", "p2\ns2"],
    )


def test_a_damaged_suite_is_one_line(tmp_path: Path) -> None:
    path = suite(tmp_path) / "EleutherAI/hendrycks_math/algebra/test.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(
        InputError, match=r"^EleutherAI/hendrycks_math/algebra/test.parquet of the evaluation suite"
    ) as e:
        list(read_splits(tmp_path, ("train",)))
    assert "\n" not in str(e.value)


def test_visual_questions_with_their_answers(tmp_path: Path) -> None:
    (tmp_path / "vsr").mkdir()
    (tmp_path / "vsr" / "test.jsonl").write_text(
        '{"image": "a.jpg", "caption": "The cat is on the mat.", "label": 1}\n', encoding="utf-8"
    )
    write_suite(tmp_path, Suite(data_sets=(DataSet(id="vsr", origin="folder", rows={"default": {"test": 1}}),)))
    (split,) = read_image_splits(tmp_path)
    assert split.texts == ["The cat is on the mat."]
    write_suite(tmp_path, Suite(data_sets=(DataSet(id="coco", origin="folder", rows={}),)))
    with pytest.raises(InputError, match="the visual suite holds coco; known are gqa"):
        list(read_image_splits(tmp_path))
