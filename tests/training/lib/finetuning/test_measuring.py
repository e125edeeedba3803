"""Measuring parent and child: after the trained model is safe, within a budget of tokens, once for a parent, and never
the end of a run.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stages.core import runtime
from stages.core.checkpoints import upload_folder
from stages.core.context import LocalArtifact
from stages.core.errors import Preempted
from stages.core.ledger import Ledger
from stages.core.messages import InputRef, StageResult
from stages.core.testing import LocalContext
from stages.dpo import run as dpo_run
from stages.dpo.spec import DpoConfig
from stages.lib.engines import process
from stages.lib.finetuning import evaluated_model as subjects
from stages.lib.finetuning import heldout_evaluation, model_loading
from stages.lib.finetuning.encoding import encode_conversations
from stages.lib.finetuning.evaluated_model import LazyModel
from stages.lib.finetuning.log_probs import by_tokens, label_log_probs
from stages.lib.formats import chat_template
from stages.lib.formats.paired_eval import from_stats
from stages.sft import run as sft_run
from stages.sft.spec import SftConfig
from tests.support import standins, tuning
from tests.support.probe_pipeline import Stream, request_of

Inputs = dict[str, list[LocalArtifact]]


def config(**changes: Any) -> SftConfig:
    return tuning.sft_config(**({"epochs": 1} | changes))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    root = tmp_path_factory.mktemp("measuring")
    return {
        "parent": [tuning.parent(root)],
        "conversations": [tuning.conversations(root / "train", tuning.echoes(0, 18))],
        "heldout": [tuning.conversations(root / "heldout", tuning.echoes(100, 16))],
    }


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which models a measurement reads rows with."""
    seen: list[str] = []

    def noting(self: LazyModel, rows: Any) -> Any:
        seen.append(self._what)
        return original(self, rows)

    original = LazyModel.log_probs
    monkeypatch.setattr(LazyModel, "log_probs", noting)
    return seen


def test_a_measurement_that_fails_is_a_gap_and_the_model_is_published(
    tmp_path: Path, artifacts: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        LazyModel,
        "answers",
        lambda *args, **kwargs: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")),
    )
    ctx = LocalContext(tmp_path, config(), artifacts)
    sft_run.run(ctx)
    assert (ctx.output("model") / "model.safetensors").is_file()
    assert ctx.stats["not_measured"] == {
        f"{who}: samples": "OutOfMemoryError: CUDA out of memory" for who in ("child", "parent")
    }
    assert [one.metric for one in from_stats(ctx.stats, "test")] == ["answer_loss"]  # what could be measured was
    assert (
        "> Not measured: child: samples (OutOfMemoryError: CUDA out of memory)."
        in (ctx.output("model") / "README.md").read_text()
    )
    assert sum("could not be measured" in line for line in ctx.logs if line.startswith("warning")) == 2


def test_a_comparison_that_fails_is_a_gap_and_the_model_is_published(
    tmp_path: Path, artifacts: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sft_run, "compare", lambda *args: (_ for _ in ()).throw(ValueError("no answer")))
    ctx = LocalContext(tmp_path, config(), artifacts)
    sft_run.run(ctx)
    assert (ctx.output("model") / "model.safetensors").is_file()
    assert ctx.stats["not_measured"] == {"comparison": "ValueError: no answer"}
    assert from_stats(ctx.stats, "test") == []


class Cut(BaseException):
    """Ends an attempt as SIGKILL does: nothing is cleared up."""


class Measuring(LocalContext[SftConfig]):
    """Attempts that share a store measure three parts of parent and child, and die at some of the child's."""

    asked_to_stop = False

    @property
    def stopping(self) -> bool:
        return self.asked_to_stop

    def attempt(self, deadly: str, after_request: bool = False) -> heldout_evaluation.Measurements | None:
        """None when it died. deadly: letters of parts; after_request: asked to stop, it is cut off later."""
        at_death: dict[str, Any] = {}
        self.asked_to_stop = False

        def part(letter: str) -> heldout_evaluation.Measurement:
            def value(subject: LazyModel) -> int:
                if letter in deadly and subject._what == "child":
                    self.asked_to_stop = after_request
                    time.sleep(5 * heldout_evaluation.WATCH_SECONDS)  # its grace
                    at_death.update(self.memory)
                    raise Cut
                return 1

            return heldout_evaluation.Measurement(letter, value, (), ())

        try:
            return heldout_evaluation.measure(self, "sft", self.root, torch.device("cpu"), [part(x) for x in "abc"])
        except Cut:
            self.memory = at_death
            return None


def test_what_two_attempts_died_at_is_left_out_and_each_such_part_costs_two_attempts(
    tmp_path: Path, artifacts: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are measured. A run afterwards, as after --force, measures all."""
    monkeypatch.setattr(heldout_evaluation, "WATCH_SECONDS", 0.02)
    ctx = Measuring(tmp_path, config(), artifacts)
    for _ in range(4):
        assert ctx.attempt("ab") is None
    measured = ctx.attempt("ab")
    assert measured is not None
    assert measured.gaps == {f"child: {letter}": heldout_evaluation.KILLED for letter in "ab"}
    assert measured.stats() == {"not_measured": measured.gaps}
    assert measured.after == {"c": 1}
    again = ctx.attempt("")
    assert again is not None
    assert not again.gaps


def test_a_stop_that_outlasts_its_grace_or_one_lost_machine_leaves_nothing_out(
    tmp_path: Path, artifacts: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heldout_evaluation, "WATCH_SECONDS", 0.02)
    ctx = Measuring(tmp_path, config(), artifacts)
    for after_request in (True, False, True, True):
        assert ctx.attempt("b", after_request) is None
    measured = ctx.attempt("")
    assert measured is not None
    assert not measured.gaps
    assert measured.after == {"a": 1, "b": 1, "c": 1}


def test_an_attempt_that_dies_while_measuring_is_not_trained_again(
    tmp_path: Path, artifacts: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sft_run, "measure", lambda *args: (_ for _ in ()).throw(SystemExit(137)))
        first = LocalContext(tmp_path, config(), artifacts)
        with pytest.raises(SystemExit):
            sft_run.run(first)
    weights = (first.output("model") / "model.safetensors").read_bytes()
    (first.output("model")).rename(tmp_path / "gone")  # another machine has the store alone
    monkeypatch.setattr(sft_run, "fine_tune", lambda *args: pytest.fail("it trains again"))
    again = LocalContext(tmp_path, config(), artifacts)
    sft_run.run(again)
    assert (again.output("model") / "model.safetensors").read_bytes() == weights
    assert again.stats["after_answer_loss"] < again.stats["before_answer_loss"]
    whole = LocalContext(tmp_path / "whole", config(), artifacts)
    monkeypatch.undo()
    sft_run.run(whole)
    assert whole.stats == {**again.stats, "measuring": whole.stats["measuring"]}, "but for its time"
    assert [p.name for p in sorted(whole.output("model").iterdir())] == [
        p.name for p in sorted(again.output("model").iterdir())
    ]


def test_through_the_store_a_killed_measurement_costs_no_training(
    ledger: Ledger, tmp_path: Path, artifacts: Inputs, looked_at: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime as a container has it: what is trained lies in the store, and the next attempt, on another machine,
    begins there.
    """
    monkeypatch.setenv("MOXIN_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("MOXIN_CACHE", str(tmp_path / "cache"))
    key, stream = "7" * 64, Stream(tmp_path / "events.jsonl")
    inputs = {}
    for port, (one,) in artifacts.items():
        files = upload_folder(ledger.store, f"objects/{port}", one.path)
        inputs[port] = (
            InputRef(node=port, key="k", port=port, manifest=one.manifest.model_copy(update={"files": files})),
        )

    def attempt() -> StageResult:
        request = request_of(ledger.store.address, ledger, key).model_copy(
            update={
                "node": "sft_x",
                "stage": "sft",
                "config": config().model_dump(mode="json"),
                "inputs": inputs,
                "outputs": {"model": "Model"},
            }
        )
        stopper: Any = SimpleNamespace(context=None, cooperative=False)
        try:
            result = runtime.run(request, stream.events, stopper)
            assert result is not None
            return result
        finally:
            ledger.release(request.lease)

    with monkeypatch.context() as patch:
        patch.setattr(LazyModel, "answers", lambda *args, **kwargs: (_ for _ in ()).throw(SystemExit(137)))
        with pytest.raises(SystemExit):
            attempt()
    assert looked_at == ["parent"]
    assert ledger.checkpoint_steps(key)[-1] == 6  # five steps, and the model
    monkeypatch.setattr(sft_run, "fine_tune", lambda *args: pytest.fail("it trains again"))
    looked_at.clear()
    result = attempt()
    assert looked_at == ["child"]
    assert [f.path for f in result.outputs["model"].files if f.path.endswith((".safetensors", ".md", ".jsonl"))] == [
        "README.md", "model.safetensors", "samples.jsonl"
    ]  # fmt: skip
    assert result.attempt.resumed_from == 6
    assert result.stats["effects"]
    assert result.metrics_object is not None  # the rows of the attempt that trained
    rows = ledger.store.get(result.metrics_object)
    assert rows is not None
    assert len(rows[0].splitlines()) == 5


def test_an_engine_that_the_kernel_ends_while_measuring_is_a_gap(
    tmp_path: Path, artifacts: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asked the stage to stop: to be tried again would end in the same way, and the trained model would never be
    published.
    """
    killed = process.failure("vllm", -9, [])
    monkeypatch.setattr(LazyModel, "answers", lambda *args, **kwargs: (_ for _ in ()).throw(killed))
    ctx = LocalContext(tmp_path, config(), artifacts)
    sft_run.run(ctx)
    assert ctx.stats["not_measured"].keys() == {"child: samples", "parent: samples"}
    assert (ctx.output("model") / "model.safetensors").is_file()


def test_a_stop_while_measuring_is_obeyed_and_what_was_measured_of_the_parent_stays(
    tmp_path: Path, artifacts: Inputs, looked_at: list[str]
) -> None:
    class Stopped(LocalContext[SftConfig]):
        @property
        def stopping(self) -> bool:
            return "parent" in looked_at and len(looked_at) > 1

    ctx = Stopped(tmp_path, config(), artifacts)
    with pytest.raises(Preempted, match="stopped while the child was measured"):
        sft_run.run(ctx)
    again = LocalContext(tmp_path, config(), artifacts)
    again.memory = ctx.memory
    looked_at.clear()
    sft_run.run(again)
    assert looked_at == ["child"]


def test_a_parent_is_measured_once_for_all_its_children(
    tmp_path: Path, artifacts: Inputs, looked_at: list[str]
) -> None:
    first = LocalContext(tmp_path / "1", config(), artifacts)
    sft_run.run(first)
    second = LocalContext(tmp_path / "2", config(learning_rate=1e-3), artifacts)
    second.memory = first.memory
    sft_run.run(second)
    assert looked_at == ["parent", "child", "child"]
    assert second.stats["before_answer_loss"] == first.stats["before_answer_loss"]
    assert second.stats["after_answer_loss"] != first.stats["after_answer_loss"]
    for changes in ({"eval_rows": 8}, {"max_length": 60}):  # what the number follows from
        other = LocalContext(tmp_path / str(changes), config(**changes), artifacts)
        other.memory = dict(first.memory)
        looked_at.clear()
        sft_run.run(other)
        assert looked_at == ["parent", "child"]


def test_a_memory_that_cannot_be_read_costs_a_measurement_and_no_more(
    tmp_path: Path, artifacts: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise OSError("the store is away")

    ctx = LocalContext(tmp_path, config(), artifacts)
    monkeypatch.setattr(ctx, "recall", broken)
    monkeypatch.setattr(ctx, "remember", broken)
    sft_run.run(ctx)
    assert "not_measured" not in ctx.stats
    assert ctx.stats["effects"]


def test_a_batch_holds_its_tokens_and_no_more() -> None:
    lengths = [9, 3, 30, 4, 4, 10, 3, 10]
    parts = list(by_tokens(lengths, 12))
    assert sorted(i for part in parts for i in part) == list(range(8))
    assert [[lengths[i] for i in part] for part in parts] == [[3, 3, 4], [4], [9], [10], [10], [30]]
    assert all(len(part) == 1 or len(part) * max(lengths[i] for i in part) <= 12 for part in parts)


def test_out_of_memory_is_tried_again_with_half_and_the_numbers_stay(
    tmp_path: Path, artifacts: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = artifacts["parent"][0].path
    rows = encode_conversations(
        model_loading.load_tokenizer(folder, chat_template.TULU), tuning.echoes(0, 12), 100
    ).rows
    ctx = LocalContext(tmp_path, config(eval_tokens=2000), artifacts)
    expected = label_log_probs(model_loading.load_model(folder, torch.device("cpu")), rows, 10_000)
    tried: list[int] = []

    def small(model: Any, rows: Any, tokens: int, told: Any) -> Any:
        tried.append(tokens)
        if tokens > 300:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return label_log_probs(model, rows, tokens, told)

    monkeypatch.setattr(subjects, "label_log_probs", small)
    with LazyModel(ctx, folder, torch.device("cpu"), "parent") as subject:
        sums, counts = subject.log_probs(rows)
    assert tried == [2000, 1000, 500, 250]
    assert counts == expected[1]
    assert sums == pytest.approx(expected[0], abs=1e-4)
    assert sum("out of memory, trying again" in line for line in ctx.logs) == 3


def test_dpos_reference_is_computed_for_the_engine_that_wants_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 7B it would read 270,000 pairs twice for open-instruct, which makes its own."""
    tuning.stand_in(tmp_path, monkeypatch, "open_instruct", Path(standins.__file__).parent / "open_instruct.py")
    monkeypatch.setattr(dpo_run, "reference", lambda *args: pytest.fail("nobody asked for it"))
    pairs = [([tuning.user(f"what {n}")], f"it is {n % 10}", "no") for n in range(8)]
    inputs = {
        "parent": [tuning.parent(tmp_path, template=chat_template.TULU)],
        "preferences": [tuning.preferences(tmp_path / "train", pairs)],
        "heldout": [tuning.preferences(tmp_path / "heldout", pairs)],
    }
    settings: dict[str, Any] = {
        "engine": "open-instruct",
        "device": "cuda",
        "global_batch_size": 4,
        "max_length": 100,
        "max_new_tokens": 8,
        "samples": 2,
    }
    ctx = LocalContext(tmp_path / "run", DpoConfig(**settings), inputs)
    dpo_run.run(ctx)
    assert ctx.stats["effects"]
