"""A Prefect server that hangs, fails or goes away in the middle of a run: the work is published, and a person sees one
line.
"""

from __future__ import annotations

import threading

import pytest

from flows.prefect_artifacts import ApiCallQueue
from tests.support.limits import HANG


def test_calls_are_made_in_order_and_the_newest_of_a_kind_counts() -> None:
    api_calls, go, made = ApiCallQueue(), threading.Event(), []
    api_calls.put("first", go.wait)
    for number in range(100):
        api_calls.put("bar", lambda number=number: made.append(number))
    api_calls.put("table", lambda: made.append("table"))
    go.set()
    assert api_calls.close() is None
    assert made in ([99, "table"], [0, 99, "table"])


def test_a_server_that_hangs_holds_nobody_up_and_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ApiCallQueue, "CLOSE_SECONDS", 0.1)
    api_calls, go = ApiCallQueue(), threading.Event()
    try:
        for number in range(5):
            api_calls.put(f"table {number}", lambda: go.wait(HANG))
        line = api_calls.close()
        assert (
            line
            == "the Prefect UI lacks 5 tables, pictures or bars of this run (the Prefect server does not answer); the"
            " results are not touched"
        )
        api_calls.put("late", lambda: pytest.fail("nothing is begun after the end"))
    finally:
        go.set()


def test_a_server_that_fails_is_told_of_in_one_short_line() -> None:
    def fails() -> None:
        raise ConnectionError("refused\nFor more information see a long page\n" + "x" * 1000)

    api_calls = ApiCallQueue()
    for number in range(3):
        api_calls.put(f"table {number}", fails)
    assert (
        api_calls.close()
        == "the Prefect UI lacks 3 tables, pictures or bars of this run (ConnectionError: refused); the results are not"
        " touched"
    )


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ApiCallQueue, "CLOSE_SECONDS", 0.1)
    api_calls, go = ApiCallQueue(), threading.Event()
    try:
        for number in range(1000):
            api_calls.put(f"table {number}", lambda: go.wait(HANG))
        assert len(api_calls._calls) <= ApiCallQueue.WAITING
        assert "lacks 1000 tables" in str(api_calls.close())
    finally:
        go.set()
