"""The items of suites: which splits are read, and what is damaged."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from stages.contamination.items import read_image_splits, read_splits
from stages.core.errors import InputError
from stages.lib.evaluation.item_text import item_mark
from stages.lib.formats.suites import DataSet, Suite, write_data_set, write_suite


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
    assert split.marks == [item_mark("0")]
    assert split.texts == ["The cat is on the mat."]
    write_suite(tmp_path, Suite(data_sets=(DataSet(id="coco", origin="folder", rows={}),)))
    with pytest.raises(InputError, match="the visual suite holds coco; known are gqa"):
        list(read_image_splits(tmp_path))
