"""How a stage ends in one class and one line, and how its events are written."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from stages.core import runtime
from stages.core.errors import ConfigError, ExitClass, InputError, Preempted
from stages.core.failures import MESSAGE, classify
from stages.core.leases import LeaseLost
from tests.support.probe_pipeline import Stream


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    return Stream(tmp_path / "events.jsonl")


class OutOfMemoryError(RuntimeError):
    """Named as torch names it; torch itself is not imported by the runtime."""


@pytest.mark.parametrize(
    ("error", "exit_class", "message"),
    [
        (ConfigError("a"), "config", "a"),
        (InputError("b"), "input", "b"),
        (LeaseLost("c"), "infra", "c"),
        (Preempted("d"), "preempted", "d"),
        (MemoryError(), "oom", "out of memory"),
        (OutOfMemoryError("CUDA"), "oom", "out of memory: CUDA"),
        (OSError(errno.ENOSPC, "full", "/data/x"), "infra", "no space left on the disk that holds /data/x"),
        (OSError(errno.EDQUOT, "quota"), "infra", "no space left on the disk that holds request"),
        (
            OSError(errno.ESTALE, "Stale file handle", "/s/x"),
            "infra",
            "the disk that holds /s/x does not answer: Stale",
        ),
        (OSError(errno.EIO, "I/O error"), "infra", "the disk that holds request does not answer: I/O error"),
        (
            OSError(errno.ENOTCONN, "not connected", "/s/x"),
            "infra",
            "the disk that holds /s/x does not answer: not conn",
        ),
        (OSError(errno.ENOTCONN, "not connected"), "bug", "OSError: [Errno 107] not connected"),
        (OSError(errno.EACCES, "denied", "/data/x"), "bug", "PermissionError: [Errno 13] denied: '/data/x'"),
        (ValueError("e"), "bug", "ValueError: e"),
        (SystemExit(3), "bug", "SystemExit: 3"),
    ],
)
def test_errors_are_classified(error: BaseException, exit_class: str, message: str) -> None:
    found = classify(error, Path("request"))
    assert found[0] == exit_class
    assert found[1].startswith(message)
    assert "\n" not in found[1]


def test_a_disk_that_failed_while_another_error_was_told_does_not_hide_that() -> None:
    stale, cut, unknown = OSError(errno.ESTALE, "stale", "/s/x"), ValueError("a shard is cut"), ValueError("no option")
    cut.__cause__ = cut.__context__ = unknown.__context__ = stale
    assert classify(cut, Path())[0] is ExitClass.INFRA, "raised from it"
    assert classify(unknown, Path())[0] is ExitClass.BUG, "raised after it"


def test_what_an_error_quotes_of_others_data_stays_one_line_of_bounded_length() -> None:
    assert classify(InputError("no task 'a\nerror: pay\ud800'"), Path())[1] == "no task 'a error: pay\\ud800'"
    line = classify(InputError("x" * 1_000_000), Path())[1]
    assert (len(line), line[-2:]) == (MESSAGE, " …")


def test_a_bug_is_shown_with_its_place() -> None:
    with pytest.raises(ValueError) as caught:
        json.loads("{")
    assert "(decoder.py:" in classify(caught.value, Path())[1]


def test_a_store_error_out_of_a_stage_is_not_hidden() -> None:
    error = ClientError({"Error": {"Code": "X", "Message": "m"}}, "GetObject")
    assert classify(error, Path())[0] is ExitClass.BUG


def test_progress_is_thinned_out_but_the_end_is_always_told(stream: Stream) -> None:
    for done in range(1, 1001):
        stream.events.progress(done, 1000, "files")
    rows = stream.rows()
    assert 1 <= len(rows) < 20
    assert rows[-1] == {"event": "progress", "done": 1000, "total": 1000, "unit": "files"}


def test_events_are_one_line_of_utf8_each(stream: Stream) -> None:
    stream.events.emit("log", message="two\nlines, é, \u2028", path=Path("x"))
    assert stream.rows() == [{"event": "log", "message": "two\nlines, é, \u2028", "path": "x"}]


def test_a_reader_that_is_gone_does_not_hurt() -> None:
    reader, writer = os.pipe()
    events = runtime.Events(writer)
    os.close(reader)
    events.emit("log", message="nobody listens")
    events.emit("log", message="x" * 100_000)
