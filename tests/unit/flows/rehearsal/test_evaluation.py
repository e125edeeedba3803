"""An evaluation is foretold task by task: questions that are read, answers that are written in batches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flows.rehearsal.evaluation import Asked, asked, growth, seconds
from flows.rehearsal.report import Measured, TaskTime
from stages.evaluate.spec import EvaluateConfig
from stages.evaluate_vlm.spec import EvaluateVlmConfig

READ = TaskTime(seconds=2.0, cpu_seconds=1.0, documents=4, of=20, limit=4, answers=0, new_tokens=None)
WRITTEN = READ.model_copy(update={"answers": 4})


def test_what_is_read_grows_with_its_documents() -> None:
    assert growth(READ, Asked(60, 1, None), 16, 0) == (5.0,) * 3, "no more than there are"
    assert growth(READ, Asked(60, 1, None), 16, 200) == (15.0,) * 3, "made here: as many as its settings say"
    assert growth(READ, Asked(None, 1, None), 16, 200) == (50.0,) * 3
    groups = READ.model_copy(update={"documents": 12, "of": 200})
    assert growth(groups, Asked(10, 1, None), 16, 0) == (2.5,) * 3, "a limit is of each of its three data sets"
    assert growth(groups, Asked(90, 1, None), 16, 0) == (200 / 12,) * 3


def test_answers_of_a_batch_that_is_not_full_are_no_more_time() -> None:
    """Forty answers are three batches of 16; ten times as many as were written."""
    assert growth(WRITTEN, Asked(20, 2, None), 16, 0) == (3.0, 3.0, 10.0)
    full = WRITTEN.model_copy(update={"documents": 16, "answers": 16, "limit": 16, "of": 100})
    assert growth(full, Asked(40, 1, None), 16, 0) == (2.5, 2.5, 3.0)
    assert growth(WRITTEN, Asked(4, 1, None), 16, 0) == (1.0, 1.0, 1.0)
    longer = WRITTEN.model_copy(update={"new_tokens": 64})
    assert growth(longer, Asked(4, 1, 96), 16, 0) == (1.5, 1.5, 1.5)


def test_its_start_does_not_grow_and_each_task_does_by_itself() -> None:
    tasks = (
        SimpleNamespace(task="read", limit=8, repeats=1, max_new_tokens=None),
        SimpleNamespace(task="written", limit=20, repeats=2, max_new_tokens=None),
    )
    config: Any = SimpleNamespace(suites=(SimpleNamespace(name="s", tasks=tasks),), batch_size=16)
    one = Measured(
        seconds=10.0,
        cpu_seconds=8.0,
        peak_memory_bytes=1,
        bytes_in=0,
        bytes_out=0,
        parts={"s/read": READ, "s/written": WRITTEN},
    )
    assert seconds(config, 0, one, processor=False) == pytest.approx((6 + 4 + 6, 6 + 4 + 6, 6 + 4 + 20))
    assert seconds(config, 0, one, processor=True) == pytest.approx((6 + 2 + 3, 6 + 2 + 3, 6 + 2 + 10))
    assert seconds(config, 0, one.model_copy(update={"parts": {"s/read": READ}}), processor=False) is None


def test_tasks_have_the_names_that_attempts_give_them() -> None:
    config = EvaluateConfig.model_validate({"suites": [{"base": "table_2", "limit": 7}]})
    name, task = f"{config.suites[0].name}/{config.suites[0].tasks[0].task}", config.suites[0].tasks[0]
    assert asked(config)[name] == Asked(7, task.repeats, task.max_new_tokens)
    assert asked(EvaluateVlmConfig(limit=3, max_new_tokens=9))["vizwiz"] == Asked(3, 1, 9)
    assert asked(SimpleNamespace(limit=5)) == {}
