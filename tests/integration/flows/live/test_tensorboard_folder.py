"""`moxin tensorboard`: event files of results that any machine made, and of what trains now."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from flows import profiles
from flows.live import tensorboard_folder
from flows.live.attempt_events import local_log
from flows.plan import make_plan
from flows.profiles import Profile
from flows.tensorboard_events import TensorBoardObserver
from stages.core.errors import ConfigError
from stages.core.ledger import Ledger
from stages.core.records import AttemptRecord
from stages.pipeline import PIPELINE
from tests.support.report_pages import publish


@pytest.fixture(scope="module")
def tiny() -> Profile:
    return profiles.load("tiny", PIPELINE)


def attempt(ledger: Ledger, key: str, node: str, epoch: int) -> None:
    ledger.record_attempt(
        AttemptRecord(
            key=key, epoch=epoch, node=node, run_id="r", launcher="process", started_at="2026-01-02T03:04:05Z"
        )
    )


def log(*losses: tuple[int, float]) -> bytes:
    rows = [
        {"time": f"2026-01-02T03:04:{step:02d}.000+00:00", "event": "metric", "step": step, "values": {"loss": loss}}
        for step, loss in losses
    ]
    return "".join(json.dumps(row) + "\n" for row in [{"event": "log", "message": '"metric"'}, *rows]).encode()


def messages(path: Path) -> list[bytes]:
    """The messages of an event file."""
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(data[12 : 12 + length])
        data = data[16 + length :]
    return found


def test_every_attempt_of_a_result_becomes_an_event_file(ledger: Ledger, tmp_path: Path, tiny: Profile) -> None:
    """The first attempt came to step 3 and died, the second resumed from step 2; of pretrain_2 the logs are gone."""
    done = publish(ledger, "pretrain_1", metrics=[{"step": 1, "loss": 9.0}])
    for epoch in (1, 2):
        attempt(ledger, done.key, "pretrain_1", epoch)
    ledger.store.put(ledger.log_key(done.key, 1), log((1, 5.0), (2, 4.0), (3, 99.0)))
    local = local_log(tmp_path, done.key, 2)
    local.parent.mkdir(parents=True)
    local.write_bytes(log((2, 3.5), (3, 3.0)) + b'{"event": "metric", "st')
    publish(ledger, "pretrain_2", metrics=[{"step": 1, "loss": 7.0, "val_loss": 6.0}])
    publish(ledger, "collect")  # no curve

    shown = tensorboard_folder.collect(ledger, tmp_path, tmp_path / "shown", [(PIPELINE, tiny)])
    assert [(one.run, one.rows) for one in shown] == [("tiny/pretrain_1", 5), ("tiny/pretrain_2", 1)]
    first, second = sorted((tmp_path / "shown" / "tiny" / "pretrain_1").iterdir())
    assert len(messages(first)) == 5
    assert messages(second)[1].endswith(b"\x10\x02\x3a\x02\x08\x01"), "SessionLog.START at step 2"

    again = tensorboard_folder.collect(ledger, tmp_path, tmp_path / "shown", [(PIPELINE, tiny)], ["pretrain_2"])
    assert [one.run for one in again] == ["tiny/pretrain_2"]
    assert not (tmp_path / "shown" / "tiny" / "pretrain_1").exists(), "of before"


def test_tensorboards_own_reader_reads_the_resumed_curve(ledger: Ledger, tmp_path: Path, tiny: Profile) -> None:
    """Not in the locks: `pip install tensorboard` beside them runs it."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    done = publish(ledger, "pretrain_1")
    for epoch, rows in enumerate((log((1, 5.0), (2, 4.0), (3, 99.0)), log((2, 3.5), (3, 3.0))), 1):
        attempt(ledger, done.key, "pretrain_1", epoch)
        ledger.store.put(ledger.log_key(done.key, epoch), rows)
    tensorboard_folder.collect(ledger, tmp_path, tmp_path / "shown", [(PIPELINE, tiny)])
    reader = accumulator.EventAccumulator(str(tmp_path / "shown" / "tiny" / "pretrain_1"))
    reader.Reload()
    assert [(row.step, row.value) for row in reader.Scalars("loss")] == [(1, 5.0), (2, 3.5), (3, 3.0)]
    assert reader.Scalars("loss")[0].wall_time == 1767323041.0


def test_what_trains_now_is_followed(ledger: Ledger, tmp_path: Path, tiny: Profile) -> None:
    (plan,) = make_plan(PIPELINE, tiny, ledger, "collect")
    assert plan.key is not None
    TensorBoardObserver(tmp_path / "tensorboard" / "tiny").event(
        "collect", {"event": "metric", "step": 1, "values": {"loss": 1.0}}
    )
    folder = tmp_path / "shown"
    with pytest.raises(ConfigError, match="no curve of collect in profile 'tiny'"):
        tensorboard_folder.collect(ledger, tmp_path, folder, [(PIPELINE, tiny)], ["collect"])
    ledger.acquire(plan.key, "somebody")
    (one,) = tensorboard_folder.collect(ledger, tmp_path, folder, [(PIPELINE, tiny)], ["collect"])
    assert (one.run, one.live) == ("tiny/collect (running)", True)
    assert list((folder / "tiny" / "collect (running)").glob("events.out.tfevents.*"))


def test_a_folder_of_others_is_not_emptied(ledger: Ledger, tmp_path: Path, tiny: Profile) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(ConfigError, match="holds files of others"):
        tensorboard_folder.collect(ledger, tmp_path, tmp_path / "mine", [(PIPELINE, tiny)])
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
