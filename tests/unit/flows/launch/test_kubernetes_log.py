"""A pod's log is read once, whatever the node has rotated away when a connection begins again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.launch import kubernetes_log
from flows.launch.kubernetes_log import CLOCK_SECONDS, LogPosition


def stamped(number: int, nanoseconds: int) -> bytes:
    return b"2026-01-01T00:00:%02d.%09dZ line %d" % (*divmod(nanoseconds, 10**9), number)


@given(
    gaps=st.lists(st.sampled_from([0, 1, 5, 10**9]), min_size=1, max_size=40),
    cuts=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=5),
)
def test_every_line_is_read_once_and_in_order(gaps: list[int], cuts: list[tuple[int, int]]) -> None:
    """cuts: connections that send the log from somewhere before the first unread time, up to somewhere."""
    times = [sum(gaps[: number + 1]) for number in range(len(gaps))]
    lines = [stamped(number, at) for number, at in enumerate(times)]
    position, read = LogPosition(), list[bytes]()
    for begin, end in [*cuts, (0, len(lines))]:
        whole = min(begin, times.index(times[len(read) - 1]) if read else 0)  # nothing that is needed is lost
        position.begin_again()
        read += [text for line in lines[whole:end] if (text := position.unread(line)) is not None]
    assert read == [b"line %d" % number for number in range(len(lines))]


def test_a_reading_that_begins_again_asks_for_no_more_than_it_may_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    position = LogPosition()
    assert position.since_seconds() is None, "all of it"
    assert position.unread(b"2026-01-01T00:00:10.5+00:00 x") == b"x"
    monkeypatch.setattr(kubernetes_log.time, "time", lambda: 1767225610.0 + 7200)
    assert position.since_seconds() == 7200 + CLOCK_SECONDS
    assert position.unread(b"no time before it") == b"no time before it"
