"""Lines of any number, cut out of pieces of any size: none lost, none doubled, each byte fetched once a reading."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import log_lines
from flows.launch import slurm
from flows.log_lines import FileLines, LineCutter, StoredLines, metric_rows, thinned


class Objects:
    """A store with one object, which tells what was asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.ranges: list[int] = []

    def list(self, key: str) -> list[Any]:
        return [SimpleNamespace(key="metrics-of-another", size=1), SimpleNamespace(key="metrics", size=len(self.data))]

    def get_range(self, key: str, start: int, end: int) -> bytes:
        self.ranges.append(end - start)
        return self.data[start:end]


@given(st.lists(st.binary(max_size=6).map(lambda text: text.replace(b"x", b"\n"))), st.integers(1, 4))
def test_pieces_of_any_size_give_the_same_lines(pieces: list[bytes], longest: int) -> None:
    cutter, whole = LineCutter(), b"".join(pieces)
    *ended, last = whole.split(b"\n")
    assert [line for piece in pieces for line in cutter.lines(piece)] == ended
    assert list(cutter.end()) == [last] * bool(last)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_lines, "LONGEST", longest)
        cutter, lines = LineCutter(), []
        for piece in pieces:
            lines += cutter.lines(piece)
            assert len(cutter._begun) <= longest, "a line without an end is held no longer than this"
        assert b"".join([*lines, *cutter.end()]) == whole.replace(b"\n", b"")


def test_a_million_rows_are_gone_through_in_ranges_and_a_chart_gets_its_thousand() -> None:
    """Before, all of them were parsed and held, and Prefect's curve had as many points."""
    store = Objects(b"".join(b'{"step": %d, "loss": 1}\n' % number for number in range(9 * 10**6, 10**7)))
    rows = metric_rows(store, "metrics")  # type: ignore[arg-type]
    assert len(rows) == 978, "every 1,024th, and the last"
    assert rows[0]["step"] == 9_000_000
    assert rows[-1]["step"] == 9_999_999
    assert max(store.ranges) == log_lines.RANGE
    assert sum(store.ranges) == len(store.data), "read once"
    assert metric_rows(store, None) == metric_rows(store, "none") == []  # type: ignore[arg-type]


@given(st.lists(st.booleans(), max_size=300), st.integers(1, 40))
def test_thinning_keeps_the_ends_and_every_held_out_row(held_out: list[bool], most: int) -> None:
    rows = [{"step": float(i), **({"val_loss": 1.0} if held else {})} for i, held in enumerate(held_out)]
    kept = thinned([json.dumps(row).encode() for row in rows], most)
    assert [row for row in rows if "val_loss" in row] == [row for row in kept if "val_loss" in row]
    assert kept[:1] + kept[-1:] == rows[:1] + rows[-1:]
    assert len(kept) <= most + sum(held_out) + 1
    assert len(kept) >= min(len(rows), most / 2)
    assert kept == sorted(kept, key=lambda row: row["step"])


def test_the_last_line_of_a_log_that_is_being_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"a\nb\r\nc\x1e\nd"
    (tmp_path / "log").write_bytes(text)
    monkeypatch.setattr(log_lines, "PIECE", 3)
    monkeypatch.setattr(log_lines, "RANGE", 2)
    stored = StoredLines(Objects(text), "metrics")  # type: ignore[arg-type]
    for _ in range(2):
        assert list(FileLines(tmp_path / "log")) == list(stored) == [b"a", b"b\r", b"c\x1e"]
    assert stored.there
    assert not StoredLines(Objects(text), "none").there  # type: ignore[arg-type]


def test_the_log_of_weeks_is_followed_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow that comes back finds all of it. What was read is not read again, also of a line that has no end yet."""
    read: list[int] = []

    class Counted:
        def __init__(self, path: Path, mode: str) -> None:
            self._stream = open(path, "rb")  # noqa: SIM115

        def __enter__(self) -> Counted:
            return self

        def __exit__(self, *_: object) -> None:
            self._stream.close()

        def seek(self, at: int) -> None:
            self._stream.seek(at)

        def read(self, size: int) -> bytes:
            read.append(len(piece := self._stream.read(size)))
            return piece

    monkeypatch.setattr(slurm, "PIECE", 64)
    monkeypatch.setattr(slurm, "open", Counted, raising=False)
    out = tmp_path / "out"
    out.write_bytes(b"".join(b'{"event": "checkpoint", "step": %d}\n' % number for number in range(100)) + b"half")
    tail = slurm._Tail(out, False)
    assert [event["step"] for event in tail.read(False)] == list(range(100))
    for _ in range(3):
        with open(out, "ab") as stream:
            stream.write(b"half")
        assert list(tail.read(False)) == []
    assert [event["message"] for event in tail.read(True)] == ["half" * 4]
    assert sum(read) == out.stat().st_size
    assert max(read) == 64
