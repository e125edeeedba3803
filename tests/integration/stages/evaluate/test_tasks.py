"""Tasks that write: chat, several answers, programs that nobody runs, this project's own tasks, and mistakes."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError

from stages.core.artifacts import EvalSuite, Model
from stages.core.errors import ConfigError, InputError
from stages.core.testing import LocalContext, local_artifact
from stages.evaluate.run import run
from stages.evaluate.spec import EvaluateConfig
from stages.evaluate.tasks import changed
from stages.lib.evaluation.suite_file import load
from stages.lib.formats.chat_template import TULU
from stages.lib.formats.completions import read_candidates, read_completions
from stages.lib.formats.reports import FILE, Report, parse_report
from tests.support import toy_questions
from tests.support.evaluation import own, scored, values

assert changed  # what an entry changes is seen in the requests below

SETS = (
    *("openai/gsm8k", "openai/openai_humaneval", "akariasai/PopQA", "HuggingFaceH4/MATH-500", "math-ai/amc23"),
    *("math-ai/minervamath", "math-ai/olympiadbench"),
)
CONFIG = EvaluateConfig(threads=1, batch_size=16)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_questions.mirror(tmp_path_factory.mktemp("questions"), *SETS)


@pytest.fixture(scope="module")
def chat_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").write_text(TULU)
    return folder


@pytest.fixture(scope="module")
def ask(harness: ModuleType, index: Any, chat_model: Path, questions: Path) -> Callable[..., Any]:
    loaded = harness.load(chat_model, CONFIG)
    return lambda **entry: scored(harness, loaded, index, questions, CONFIG, **entry)


def stage(root: Path, model: Path, questions: Path, *suites: Any) -> LocalContext[EvaluateConfig]:
    inputs = {"model": [local_artifact(Model, model)], "suites": [local_artifact(EvalSuite, questions)]}
    ctx = LocalContext(root, EvaluateConfig(threads=1, suites=suites), inputs, node="evaluate")  # type: ignore[arg-type]
    run(ctx)
    return ctx


def report_of(ctx: LocalContext[EvaluateConfig]) -> Report:
    return parse_report((ctx.output("report") / FILE).read_bytes(), "here")


# --- how a question is asked -----------------------------------------------------------------------------------------


def test_a_chat_template_makes_turns_of_the_shots_and_takes_a_system_message(ask: Callable[..., Any]) -> None:
    asked = {"task": "gsm8k", "num_fewshot": 2, "limit": 2, "max_new_tokens": 4}
    (plain, *_), (chat, *_), (ordered, *_) = (
        ask(**asked, **more).samples
        for more in ({}, {"chat_template": True}, {"chat_template": True, "system": "Answer with a number."})
    )
    assert "<|user|>" not in plain["requests"][0][0]
    text = chat["requests"][0][0]
    assert re.findall(r"<\|(\w+)\|>", text) == ["user", "assistant"] * 3
    assert text.endswith("<|assistant|>\n")
    assert ordered["requests"][0][0] == f"<|system|>\nAnswer with a number.\n{text}"


def test_settings_of_generation_are_laid_over_the_tasks_own(ask: Callable[..., Any]) -> None:
    found = ask(task="gsm8k", limit=2, max_new_tokens=3)
    assert found.generation == {
        "until": ["Question:", "</s>", "<|im_end|>"],
        "do_sample": False,
        "temperature": 0.0,
        "max_gen_toks": 3,
    }
    drawn = ask(task="math_500", limit=2, max_new_tokens=3, temperature=0.7, top_p=0.9).generation
    assert drawn == {"until": [], "do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_gen_toks": 3}


# --- several answers --------------------------------------------------------------------------------------------------


def test_pass_at_k_counts_each_answer_by_the_tasks_own_filter_and_metric(ask: Callable[..., Any]) -> None:
    entry = {"task": "gsm8k", "filter": "flexible-extract", "repeats": 4, "k": (1, 4), "temperature": 1.0}
    found = ask(**entry, limit=8, max_new_tokens=6)
    assert set(values(found)) == {
        "exact_match,strict-match",
        "exact_match,flexible-extract",
        "pass@1,flexible-extract",
        "pass@4,flexible-extract",
    }
    right: list[list[bool]] = []
    for row in (row for row in found.samples if row["filter"] == "flexible-extract"):
        gold = row["target"].rpartition("#### ")[2]
        (answers,) = row["answers"]
        numbers = [re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text) for text in answers]
        right.append([bool(n) and "".join(n[-1]).replace(",", "").rstrip(".") == gold for n in numbers])
    assert [len(each) for each in right] == [4] * 8
    assert len({text for row in found.samples for text in row["answers"][0]}) > 8, "answers must be drawn"
    assert values(found)["pass@1,flexible-extract"][0] == pytest.approx(sum(map(sum, right)) / 32)
    assert values(found)["pass@4,flexible-extract"][0] == pytest.approx(sum(map(any, right)) / 8)
    assert values(ask(**entry, limit=8, max_new_tokens=6)) == values(found), "the same seed draws the same"


# --- programs ---------------------------------------------------------------------------------------------------------


def test_programs_are_written_and_none_is_run(
    harness: ModuleType, model: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    read_before = ModuleType("lm_eval.tasks.humaneval.utils")  # as a test before this one may have left it
    file = importlib.import_module("lm_eval.tasks").__path__[0] + "/humaneval/utils.py"
    vars(read_before)["__mtime__"] = Path(file).stat().st_mtime_ns
    monkeypatch.setitem(sys.modules, read_before.__name__, read_before)
    code = {"execute": True, "repeats": 2, "k": [1, 2], "temperature": 0.8, "limit": 3, "max_new_tokens": 6}
    suite = own("mine", {"task": "humaneval", **code}, {"task": "math_500", "limit": 2, "max_new_tokens": 4})
    ctx = stage(tmp_path, model, questions, suite)
    assert [score.task for score in report_of(ctx).results] == ["math_500"]
    assert [a.tasks for a in report_of(ctx).aggregates] == [1]
    listing = read_completions(ctx.output("completions"))
    (task,) = listing.tasks
    assert (task.k, task.headline, task.repeats, task.n_total, task.toy) == ((1, 2), "pass@1", 2, 164, False)
    assert listing.model == report_of(ctx).model
    assert "3 of 164 documents" in task.note
    rows = list(read_candidates(ctx.output("completions"), task))
    assert [(row.doc, row.id) for row in rows] == [(0, "HumanEval/0"), (1, "HumanEval/1"), (2, "HumanEval/2")]
    for row in rows:
        assert len(row.programs) == 2
        name = re.search(r"check\((\w+)\)$", row.test)
        assert name is not None
        assert all(f"def {name[1]}(" in program for program in row.programs)
        assert "def check(candidate):" in row.test
    assert "HF_ALLOW_CODE_EVAL" not in os.environ
    trace = tmp_path / "trace"
    utils = sys.modules["lm_eval.tasks.humaneval.utils"]
    with pytest.raises(ConfigError, match="runs programs, which an evaluation never does"):
        utils.pass_at_k(references=["pass"], predictions=[[f"open({str(trace)!r}, 'w')"]], k=[1])
    assert not trace.exists()


def test_without_programs_the_listing_is_empty(
    harness: ModuleType, model: Path, questions: Path, tmp_path: Path
) -> None:
    ctx = stage(tmp_path, model, questions, own("mine", {"task": "popqa", "num_fewshot": 2, "limit": 2}))
    assert read_completions(ctx.output("completions")).tasks == ()
    (score,) = report_of(ctx).results
    assert (score.metric, score.num_fewshot, score.data_set) == ("exact_match", 2, "akariasai/PopQA")
    assert score.data_fingerprint is not None


# --- this project's own tasks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", load("table_7_lm_eval").tasks, ids=lambda entry: entry.task)
def test_a_task_of_table_7_asks_through_the_chat_template_and_grades_by_math_verify(
    ask: Callable[..., Any], entry: Any
) -> None:
    found = ask(**entry.model_dump() | {"limit": 3, "max_new_tokens": 4})
    assert set(values(found)) == {"math_verify,none"}
    question = found.samples[0]["doc"].get("problem") or found.samples[0]["doc"]["question"]
    assert found.samples[0]["requests"][0][0] == (f"<|system|>\n{entry.system}\n<|user|>\n{question}\n<|assistant|>\n")


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"task": "humaneval"}, "task humaneval: its answers are programs: set execute = true"),
        ({"task": "gsm8k", "execute": True}, "task gsm8k: its answers are no programs: set execute = false"),
        (
            {"task": "gsm8k", "num_fewshot": 1000, "limit": 1},
            "task gsm8k shows 1000 worked examples (num_fewshot), and its data has N in train: set num_fewshot lower,"
            " or take the whole data set",
        ),
        ({"task": "gsm8k", "repeats": 2}, "task gsm8k writes 2 answers that are all the same: set temperature above 0"),
        (
            {"task": "math_500"},
            "task math_500 may write 2048 tokens, and the context has 512: set max_new_tokens lower, or max_length"
            " higher",
        ),
    ],
)
def test_what_cannot_be_asked_is_one_line(ask: Callable[..., Any], entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        ask(**entry)
    assert re.sub(r"has \d+ in train", "has N in train", str(error.value)) == message


def test_a_model_without_a_chat_template_is_named(
    harness: ModuleType, model: Path, questions: Path, tmp_path: Path
) -> None:
    suite = {"base": "table_7_lm_eval", "only": ["amc23"], "tasks": {"amc23": {"max_new_tokens": 4}}}
    message = (
        r"^evaluate\.suites\.table_7_lm_eval: task amc23 is asked through a chat template, and the model has none: "
    )
    with pytest.raises(InputError, match=message):
        stage(tmp_path, model, questions, suite)


def test_a_metric_that_the_harness_does_not_give_is_named(
    harness: ModuleType, model: Path, questions: Path, tmp_path: Path
) -> None:
    entry = {"task": "gsm8k", "metric": "acc", "limit": 2, "max_new_tokens": 2}
    with pytest.raises(ConfigError, match=r"task gsm8k has no metric 'acc': the harness gives exact_match \(filter "):
        stage(tmp_path, model, questions, own("mine", entry))


@pytest.mark.parametrize(
    ("suites", "message"),
    [
        (
            [own("mine", {"task": "a"}, harness="olmes")],
            "suite 'mine' is of olmes, this stage runs lm-evaluation-harness",
        ),
        ([own("mine", {"task": "a"}, {"task": "a"})], "suite 'mine' names task a twice: make it two suites"),
        (["table_2", "table_2"], "two suites are called 'table_2': give one of them a name"),
        ([own("mine", {"task": "a", "k": [2]})], "pass@2 needs 2 answers, and repeats is 1"),
        ([own("mine", {"task": "a", "system": "x"})], "system is given with a chat template alone"),
    ],
)
def test_suites_that_cannot_be_run_are_refused_with_the_plan(suites: Any, message: str) -> None:
    with pytest.raises(ValidationError) as error:
        EvaluateConfig(suites=suites)
    assert message in str(error.value)


def test_vllm_that_is_not_there_is_said(harness: ModuleType, model: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^engine = 'vllm' cannot be used where this runs \(No module named 'vllm'\): "
    ):
        harness.load(model, EvaluateConfig(engine="vllm"))
