"""Trainings that meet batches which would hurt them: one process and two, resumed anywhere, have one curve."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.core.errors import ConfigError, ExitClass, Preempted
from stages.core.testing import LocalContext
from stages.lib.modeling.hf_checkpoint import load_model
from stages.lib.training import stalls
from stages.lib.training.backends.fsdp import TorchBackend
from stages.pretrain.data import WindowData
from stages.pretrain.run import run
from tests.support.distributed import run_in_process, run_processes
from tests.support.limits import HANG
from tests.support.pretraining import LENGTH, artifacts, config, handed_on

__all__ = ["artifacts"]  # a fixture: named here so that pytest finds it

BATCH = 4
BACK: dict[str, Any] = {"skips": 1, "before": 2, "after": 1}


def poison(monkeypatch: pytest.MonkeyPatch, factors: dict[int, float]) -> None:
    """Multiply the loss of these batches."""
    exact = TorchBackend._loss

    def loss(self: TorchBackend, batch: Any) -> Tensor:
        value = exact(self, batch)
        if batch.sequences is None:  # held out
            return value
        return value * factors.get(int(batch.sequences[0]) // BATCH, 1.0)

    monkeypatch.setattr(TorchBackend, "_loss", loss)


def made(steps: int = 12, **changes: Any) -> Any:
    values: dict[str, Any] = {"tokens": steps * BATCH * LENGTH, "checkpoint_every": 1, "eval_windows": 0}
    return config(dropout=0.1, **(values | changes))


def losses(rows: list[dict[str, float]]) -> dict[int, float]:
    """The loss of each step, where the last row of a step counts."""
    return {int(row["step"]): row["loss"] for row in rows if "loss" in row}


def test_a_batch_that_gives_no_number_changes_nothing_and_is_told(
    tmp_path: Path, artifacts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {5: np.nan})
    ctx = LocalContext(tmp_path, made(), artifacts)
    run(ctx)
    row = ctx.metrics[5]
    assert row["step"] == 6
    assert row["skipped"] == row["not_finite"] == 1
    assert "loss" not in row
    assert "grad_norm" not in row
    assert [row for row in ctx.metrics if "skipped" in row] == [row]
    assert ctx.stats["trouble"]["events"] == [{"step": 6, "event": "skipped", "not_finite": 1.0}]
    assert ctx.stats["skipped_steps"] == 1
    assert np.isfinite(ctx.stats["final_loss"])
    assert "## Trouble" in (ctx.output("model") / "README.md").read_text()
    steps = sorted(int(folder.name) for folder in (tmp_path / "checkpoints").glob("[0-9]*"))
    assert steps == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]  # none in the middle of trouble


def test_a_spike_is_left_out_where_that_is_asked(
    tmp_path: Path, artifacts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {7: 50.0})
    ctx = LocalContext(tmp_path / "asked", made(spikes={"deviations": 6, "window": 8}), artifacts)
    run(ctx)
    assert [row["step"] for row in ctx.metrics if "skipped" in row] == [8]
    assert ctx.metrics[7]["spike"] > 6
    assert ctx.metrics[7]["loss"] > 100
    other = LocalContext(tmp_path / "default", made(), artifacts)
    run(other)
    assert "trouble" not in other.stats
    assert ctx.metrics[8]["loss"] != other.metrics[8]["loss"]  # it would have changed the model


def test_it_goes_back_around_the_data_the_same_in_two_processes_and_when_it_is_resumed(
    tmp_path: Path, artifacts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches 6 and 7 give no number, nor does 8, the first that it takes instead."""
    poison(monkeypatch, dict.fromkeys((6, 7, 8), np.nan))
    taken: list[int] = []
    exact = WindowData.micro_batches
    monkeypatch.setattr(WindowData, "micro_batches", lambda self, step: (taken.append(step), exact(self, step))[1])
    whole = LocalContext(tmp_path / "whole", made(spikes=BACK), artifacts)
    run(whole)
    assert taken == [*range(8), *range(8, 16)]  # back at step 4, whose data had been batches 4 to 7
    assert sorted(losses(whole.metrics)) == list(range(1, 13))  # step 5 had a number before it was left out
    back = next(row for row in whole.metrics if "rolled_back" in row)
    assert (back["step"], back["rolled_back"], back["left_out"], back["skipped"]) == (5, 7, 4, 1)
    assert whole.stats["trouble"]["rolled_back"] == 1

    rows, outcome = run_processes(run, tmp_path / "two", 2, made(spikes=BACK, micro_batch_size=1), artifacts)
    assert outcome == "done"
    assert np.allclose(list(losses(rows).values()), list(losses(whole.metrics).values()), atol=2e-5)

    told: list[dict[str, float]] = []
    for stop in (9, 2, None):  # rows: in the first of the steps made anew, and two steps later
        ctx = LocalContext(tmp_path / "resumed", made(spikes=BACK, checkpoint_every=3), artifacts, stop_after=stop)
        if stop is None:
            run(ctx)
        else:
            with pytest.raises(Preempted):
                run(ctx)
        told += ctx.metrics
    assert losses(told) == losses(whole.metrics)
    assert ctx.stats["trouble"] == whole.stats["trouble"]


def test_with_no_checkpoint_from_before_it_begins_anew_and_goes_around_the_same_data(
    tmp_path: Path, artifacts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process and in two, lost on the way, and with moments of the phase before: the curve is the one of a
    training that has a checkpoint to go back to.
    """
    parent = LocalContext(tmp_path / "parent", made(4, export_moments=True), artifacts)
    run(parent)
    given = artifacts | handed_on(parent.root)
    poison(monkeypatch, dict.fromkeys((6, 7), np.nan))
    chosen: dict[str, Any] = {"spikes": BACK, "carry_moments": True}
    saved = LocalContext(tmp_path / "saved", made(**chosen), given)
    run(saved)
    none = LocalContext(tmp_path / "none", made(**chosen, checkpoint_every=100), given)
    run(none)
    assert losses(none.metrics) == losses(saved.metrics)
    assert none.stats["trouble"] == saved.stats["trouble"]
    assert [row["step"] for row in none.metrics] == [*range(1, 8), *range(1, 13)]  # the 8th is where it went back
    assert any("went back from step 8 to the beginning (no checkpoint is from before)" in line for line in none.logs)
    one, other = (load_model(ctx.output("model")).state_dict() for ctx in (none, saved))
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())

    late = LocalContext(tmp_path / "late", made(**chosen, checkpoint_every=5), given, stop_after=9)
    with pytest.raises(Preempted):  # of step 5, which was too late to go back to; in the second step made anew
        run(late)
    assert [folder.name for folder in (tmp_path / "late" / "checkpoints").iterdir()] == ["00000002"]
    later = LocalContext(tmp_path / "late", made(**chosen, checkpoint_every=5), given)
    run(later)
    assert losses([*late.metrics, *later.metrics]) == losses(saved.metrics)
    assert later.stats["trouble"] == saved.stats["trouble"]

    two = made(**chosen, checkpoint_every=100, micro_batch_size=1)
    rows, outcome = run_processes(run, tmp_path / "two", 2, two, given)
    assert outcome == "done"
    assert np.allclose(list(losses(rows).values()), list(losses(saved.metrics).values()), atol=2e-5)


def test_what_going_back_does_not_help_ends_with_what_to_do(
    tmp_path: Path, artifacts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, dict.fromkeys(range(5, 60), np.inf))
    ctx = LocalContext(tmp_path, made(spikes=BACK | {"tries": 1}), artifacts)
    with pytest.raises(
        ConfigError,
        match=r"the loss is inf, after going back and around its data, at step 4: training diverged; lower learning_",
    ):
        run(ctx)
    marks = [json.loads((folder / "state.json").read_text()) for folder in (tmp_path / "checkpoints").glob("[0-9]*")]
    assert all(np.isfinite(state["loss"]) for state in marks)


def test_a_process_that_hangs_ends_all_and_each_says_where_it_was(
    tmp_path: Path, artifacts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, begun = TorchBackend.step, list[int]()

    def hangs_here(self: TorchBackend, *given: Any) -> Any:
        begun.append(1)
        if len(begun) == 5:  # from here on half a second is too long: how slow the machine is decides nothing
            monkeypatch.setattr(stalls.StallWatch, "limit", 0.5)
            if self._dims.rank == 1:
                time.sleep(HANG)
        return exact(self, *given)

    monkeypatch.setattr(TorchBackend, "step", hangs_here)
    monkeypatch.setattr(stalls, "LOOK", timedelta(seconds=0.1))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def process(rank: int) -> None:
        os.dup2(os.open(tmp_path / f"log-{rank}", os.O_WRONLY | os.O_CREAT), 2)
        run_in_process(run, (rank, 2, port), tmp_path, made(), artifacts, {"stop": None, "dies": 0})

    started = [multiprocessing.get_context("fork").Process(target=process, args=(rank,)) for rank in (0, 1)]
    for each in started:
        each.start()
    for each in started:
        each.join(HANG)
    assert [each.exitcode for each in started] == [ExitClass.PREEMPTED.code] * 2
    logs = [(tmp_path / f"log-{rank}").read_text() for rank in (0, 1)]
    assert all(f"process {rank}: no step for 0 s; where its threads are" in logs[rank] for rank in (0, 1))
    assert all("in hangs_here" in log and "in _train_step" in log for log in logs)
