"""TensorBoard files: the bytes that upstream's writer makes, and what its reader finds in them."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import pytest

from flows import tensorboard_events
from flows.tensorboard_events import (
    TensorBoardObserver,
    masked_crc32c,
    record,
    scalars_event,
    start_event,
    version_event,
)

AT = 1700000000.25

# Made by tensorboardX 2.6.5: its RecordWriter, and its generated classes Event, SessionLog and Summary.
VERSION = "1800000000000000a37f4b220900001040fc54d9411a0d627261696e2e4576656e743a32338d2fe9"
START = "100000000000000095fbfe180900001040fc54d94110ac023a0208016b3b88f1"
SCALARS = (
    "31000000000000009d8383e90900001040fc54d94110ac022a230a0b0a046c6f737315000020400a140a0d6c6561726e696e675f7261746515"
    "000000006b2c6ef6"
)
STEP_0_NAN = "1800000000000000a37f4b220900001040fc54d9412a0d0a0b0a046c6f7373150000c07f7e7046a1"


def test_the_bytes_are_those_of_upstreams_writer() -> None:
    assert record(version_event(AT)).hex() == VERSION
    assert record(start_event(AT, 300)).hex() == START
    assert record(scalars_event(AT, 300, {"loss": 2.5, "learning_rate": 0.0})).hex() == SCALARS
    assert record(scalars_event(AT, 0, {"loss": math.nan})).hex() == STEP_0_NAN


def test_a_number_too_large_for_a_float32_is_infinite() -> None:
    assert scalars_event(AT, 1, {"x": 1e300}).endswith(struct.pack("<f", math.inf))


def metric(step: int, **values: Any) -> dict[str, Any]:
    return {"event": "metric", "step": step, "values": values}


def state(name: str) -> dict[str, Any]:
    return {"event": "state", "state": name}


def messages(path: Path) -> list[bytes]:
    """The messages of a TFRecord file, checksums checked."""
    data, out = path.read_bytes(), []
    while data:
        (length, length_crc), message = struct.unpack("<QI", data[:12]), data[12:]
        assert length_crc == masked_crc32c(data[:8])
        assert struct.unpack("<I", message[length : length + 4])[0] == masked_crc32c(message[:length])
        out.append(message[:length])
        data = message[length + 4 :]
    return out


def test_each_node_has_a_folder_and_each_attempt_a_file(tmp_path: Path) -> None:
    observer = TensorBoardObserver(tmp_path)
    for node, event in (
        ("a", state("running")),
        ("a", {"event": "progress", "done": 1, "total": 2}),
        ("a", metric(1, loss=2.0, note="not a number")),
        ("b", metric(7, reward=0.5)),
        ("a", metric(2, loss=1.5)),
        ("a", state("running")),  # all that is told between two attempts of one run
        ("a", metric(2, loss=1.25)),  # a later attempt goes on from a checkpoint
        ("a", state("done")),
        ("c", state("cached")),
    ):
        observer.event(node, event)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    first, second = sorted((tmp_path / "a").iterdir(), key=lambda path: int(path.suffix[1:]))
    assert b"loss" in messages(first)[2]
    assert b"note" not in messages(first)[2]
    assert [len(messages(path)) for path in (first, second)] == [4, 3]
    assert messages(second)[1].endswith(b"\x10\x02\x3a\x02\x08\x01"), "SessionLog.START at step 2"


def test_of_very_many_rows_fewer_and_fewer_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A month of rows, one a second, would be half a gigabyte that TensorBoard reads whole."""
    monkeypatch.setattr(tensorboard_events, "ROWS", 100)
    observer = TensorBoardObserver(tmp_path)
    for step in range(1, 2001):
        observer.event("a", metric(step, loss=1.0, **({"val_loss": 1.0} if step % 333 == 0 else {})))
    (path,) = (tmp_path / "a").iterdir()
    rows = [message for message in messages(path)[2:] if b"loss" in message]
    assert sum(b"val_loss" in row for row in rows) == 6
    assert 400 <= len(rows) <= 500, "each of 100, half of 200, a quarter of 400, an eighth of 800, ..."


def test_tensorboards_own_reader_finds_the_newest_attempts_values(tmp_path: Path) -> None:
    """Not in the locks: `pip install tensorboard` beside them runs it."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    observer = TensorBoardObserver(tmp_path)
    for loss in (4.0, 3.0, 2.0):
        observer.event("a", metric(int(5 - loss), loss=loss))
    observer.event("a", state("running"))
    observer.event("a", metric(2, loss=2.5))
    found = accumulator.EventAccumulator(str(tmp_path / "a"))
    found.Reload()
    assert [(row.step, row.value) for row in found.Scalars("loss")] == [(1, 4.0), (2, 2.5)]
