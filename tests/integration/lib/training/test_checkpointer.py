"""A training's checkpoints over a store: read by ranges, back to the one before where one is damaged, never the end of
a training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.core import reading, runtime
from stages.core.errors import InfraError, Preempted
from stages.core.ledger import Ledger
from stages.core.registry import find_stage
from stages.core.store import Store
from stages.lib.training.checkpointer import AsyncCheckpointer, NotWhole, Read, shared_reader, write_tensors
from stages.lib.training.parallel_dims import ParallelDims
from stages.lib.training.stored_tensors import read_headers
from tests.support.probe_pipeline import Stream, request_of

DIMS = ParallelDims(torch.device("cpu"))


class Training:
    """Saves and resumes one tensor, as an attempt of its own."""

    def __init__(self, ledger: Ledger, stream: Stream, root: Path) -> None:
        root.mkdir()
        request = request_of(ledger.store.address, ledger)
        reading.share(ledger.store.address, "test")
        self.ctx: Any = runtime.RuntimeContext(request, find_stage(request.stage), ledger, stream.events, root)
        self.checkpointer, self.weight, self.loaded = AsyncCheckpointer(self.ctx, DIMS), torch.zeros(600, 1000), 0

    def save(self, step: int, write: Callable[[Path], Callable[[], None]] | None = None) -> None:
        state = {"weight": torch.full((600, 1000), float(step))}
        self.checkpointer.save(step, {"step": step}, write or (lambda folder: write_tensors(state, folder, DIMS)))
        self.checkpointer.wait()

    def resume(self) -> bool:
        def load(state: Mapping[str, Any], read: Read) -> None:
            read([{"weight": self.weight}])
            self.loaded = state["step"]

        return self.checkpointer.resume(load)

    def end(self, ledger: Ledger) -> None:
        ledger.release(self.ctx.request.lease)


@pytest.fixture
def stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stream:
    monkeypatch.setenv(reading.STORE, "")
    monkeypatch.setenv(reading.ATTEMPT, "")
    return Stream(tmp_path / "events")


def test_an_attempt_that_rehearses_a_stop_takes_no_step_before_its_checkpoint_is_published(
    ledger: Ledger, stream: Stream, tmp_path: Path
) -> None:
    """Of few steps on little data the last would be over before there is one to go on from."""
    training = Training(ledger, stream, tmp_path / "attempt")
    training.ctx._awaits_stop = True
    weight = {"weight": torch.zeros(10)}
    training.checkpointer.save(3, {"step": 3}, lambda folder: write_tensors(weight, folder, DIMS))
    assert training.ctx.checkpoints.saved == 3
    training.end(ledger)


def tensors_of(ledger: Ledger, key: str, step: int) -> str:
    return next(e.object for e in ledger.checkpoint(key, step).files if e.path.endswith(".safetensors"))


def warnings(stream: Stream) -> list[str]:
    return [e["message"] for e in stream.rows() if e.get("level") == "warning"]


@pytest.mark.parametrize("steps", [(2, 4), (4,)])
@pytest.mark.parametrize("what", ["tensors", "state.json", "lost"])
def test_a_damaged_one_gives_way_to_the_one_before(
    ledger: Ledger, stream: Stream, tmp_path: Path, what: str, steps: tuple[int, ...]
) -> None:
    first = Training(ledger, stream, tmp_path / "first")
    assert not first.resume()
    for step in steps:
        first.save(step)
    first.end(ledger)
    assert first.ctx.checkpoints.most["bytes"] > 4 * 600 * 1000
    assert first.ctx.checkpoints.most.keys() == {"bytes", "store_seconds", "disk_seconds", "pause_seconds"}
    key = first.ctx.request.key
    name = tensors_of(ledger, key, 4)
    name = name if what != "state.json" else f"{name.rpartition('/')[0]}/state.json"
    found = ledger.store.get(name)
    assert found is not None
    ledger.store.delete([name])
    if what != "lost":
        ledger.store.put(name, found[0][:-2] + b"xx")
    second = Training(ledger, stream, tmp_path / "second")
    if steps == (4,) and what == "tensors":  # some of it was loaded
        with pytest.raises(Preempted, match="no checkpoint is whole: the next attempt starts anew"):
            second.resume()
    else:
        assert second.resume() is (len(steps) > 1)
    assert ledger.checkpoint_steps(key) == list(steps[:-1])
    assert second.ctx.checkpoints.resumed_from == (2 if len(steps) > 1 else None)
    if len(steps) > 1:
        assert second.loaded == 2
        assert torch.equal(second.weight, torch.full((600, 1000), 2.0))
    assert any("the checkpoint at step 4 is damaged" in line for line in warnings(stream))


def test_a_store_that_fails_is_no_damage(
    ledger: Ledger, stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Training(ledger, stream, tmp_path / "first")
    first.save(4)
    first.end(ledger)

    def fails(*_: Any) -> bytes:
        raise InfraError("the store is away")

    second = Training(ledger, stream, tmp_path / "second")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "get_range", fails)
        with pytest.raises(InfraError, match="away"):
            second.resume()
    assert second.resume()
    assert second.loaded == 4


def test_all_go_back_where_one_process_finds_damage(ledger: Ledger, stream: Stream, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Two(ParallelDims):
        def all_gather(self, value: Any) -> list[Any]:
            return [value, "mine is damaged"]

    training = Training(ledger, stream, tmp_path / "first")
    training.save(4)
    newest = training.ctx.checkpoints.newest()
    assert newest is not None
    files = [entry for entry in newest[1] if entry.path.endswith(".safetensors")]
    with pytest.raises(NotWhole, match="mine is damaged"):
        shared_reader(Two(DIMS.device), files, read_headers(files))([{"weight": training.weight}])
    assert torch.equal(training.weight, torch.full((600, 1000), 4.0)), "this one was read"


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_full_disk_costs_a_checkpoint_and_not_the_training(
    ledger: Ledger, stream: Stream, tmp_path: Path, when: str
) -> None:
    def full(folder: Path) -> Callable[[], None]:
        def later() -> None:
            raise OSError(28, "No space left on device")

        if when == "at once":
            later()
        return later

    training = Training(ledger, stream, tmp_path / "first")
    training.save(2, full)
    training.save(4)
    assert ledger.checkpoint_steps(training.ctx.request.key) == [4]
    assert [line for line in warnings(stream) if "no checkpoint at step 2: [Errno 28] No space left" in line]
    assert not list(training.ctx.scratch.glob("save-*"))


def test_the_last_checkpoint_at_a_stop_may_fail_too(
    ledger: Ledger, stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit alone: what was asked for was a stop, and that is how it ends."""
    training = Training(ledger, stream, tmp_path / "first")
    training.save(2)
    put = ledger.store.put

    def away(key: str, *arguments: Any, **options: Any) -> str:
        if key.endswith("COMMIT.json"):
            raise InfraError("the store is away")
        return put(key, *arguments, **options)

    monkeypatch.setattr(ledger.store, "put", away)
    training.save(4)
    assert ledger.checkpoint_steps(training.ctx.request.key) == [2]
    assert [line for line in warnings(stream) if "no checkpoint at step 4: the store is away" in line]
