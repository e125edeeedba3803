"""Observers that raise, stand still, come and go: the others see everything, and nobody waits."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest

from flows import event_dispatch as module
from flows.event_dispatch import EventDispatcher
from tests.support.probe_pipeline import Recorder


class Broken:
    """Raises at every event."""

    def event(self, node: str, event: Mapping[str, Any]) -> None:
        raise ValueError(f"no {event['event']}")


class Still:
    """Waits until it is let go, like a terminal that is held."""

    def __init__(self) -> None:
        self.go, self.seen = threading.Event(), 0

    def event(self, node: str, event: Mapping[str, Any]) -> None:
        self.go.wait()
        self.seen += 1


def log(number: int) -> dict[str, Any]:
    return {"event": "log", "level": "info", "message": str(number)}


def test_one_that_raises_is_told_of_once_and_counted() -> None:
    recorder = Recorder()
    dispatcher = EventDispatcher([Broken(), recorder])
    for number in range(5):
        dispatcher.publish("x", log(number))
    dispatcher.flush()
    assert recorder.messages("info") == ["0", "1", "2", "3", "4"]
    assert recorder.messages("warning") == ["Broken cannot show all of this run (ValueError: no log); the run goes on"]
    assert dispatcher.problems() == ["Broken: failed 5 times; the logs of the stages have everything"]


def test_two_that_raise_tell_each_other_nothing_without_end() -> None:
    dispatcher = EventDispatcher([Broken(), Broken()])
    dispatcher.publish("x", log(1))
    dispatcher.flush()
    dispatcher.flush()
    assert dispatcher.problems() == ["Broken: failed 2 times; the logs of the stages have everything"] * 2


def test_one_that_stands_still_holds_nobody_up_and_loses_no_change_of_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUE", 10)
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.05)
    still, recorder = Still(), Recorder()
    dispatcher = EventDispatcher([still, recorder])
    for number in range(100):
        dispatcher.publish("x", log(number))
        dispatcher._queue_of(recorder).flush()
    dispatcher.publish("x", {"event": "state", "state": "done"})
    dispatcher.flush()
    assert recorder.messages("info") == [str(number) for number in range(100)]
    (line,) = dispatcher.problems()
    assert "events were not shown, because it stood still" in line
    still.go.set()
    dispatcher._queue_of(still)._still = False
    monkeypatch.setattr(module, "FLUSH_SECONDS", 600)
    dispatcher.flush()
    assert still.seen <= 13, "what waited, the first one, and the state"


def test_events_of_a_node_go_to_its_own_observers_and_those_of_all() -> None:
    everywhere, one, other = Recorder(), Recorder(), Recorder()
    dispatcher = EventDispatcher([everywhere])
    with dispatcher.subscribe("one", one), dispatcher.subscribe("other", other):
        dispatcher.publish("one", log(1))
        dispatcher.publish("other", log(2))
    dispatcher.publish("one", log(3))
    dispatcher.flush()
    assert (everywhere.messages(), one.messages(), other.messages()) == (["1", "2", "3"], ["1"], ["2"])


def test_observers_that_come_and_go_cost_the_others_no_event() -> None:
    """Each node's task adds its own while the others' events pass: none of them may be skipped."""
    everywhere, ends = Recorder(), threading.Event()
    dispatcher = EventDispatcher([everywhere])

    def come_and_go() -> None:
        while not ends.is_set():
            with dispatcher.subscribe("busy", Recorder()):
                pass

    threads = [threading.Thread(target=come_and_go) for _ in range(3)]
    for thread in threads:
        thread.start()
    mine = Recorder()
    with dispatcher.subscribe("mine", mine):
        for number in range(2000):
            dispatcher.publish("mine", log(number))
    ends.set()
    for thread in threads:
        thread.join()
    dispatcher.flush()
    assert mine.messages() == everywhere.messages() == [str(number) for number in range(2000)]


def test_an_event_that_comes_while_the_last_thread_is_still_leaving_is_shown() -> None:
    """The thread that emptied the queue has said that it ends, and has not left its context yet."""
    recorder = Recorder()
    dispatcher = EventDispatcher([recorder])
    box, inside, go = dispatcher._queue_of(recorder), threading.Event(), threading.Event()

    def leaves() -> None:
        inside.set()
        go.wait()

    leaving = threading.Thread(target=box._context.run, args=(leaves,))
    leaving.start()
    inside.wait()
    dispatcher.publish("x", log(1))
    dispatcher.flush()
    go.set()
    leaving.join()
    assert recorder.messages() == ["1"]
