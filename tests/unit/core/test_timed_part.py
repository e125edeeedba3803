"""Time of a part of a stage's work."""

from __future__ import annotations

import time

from stages.core.timed_part import TimedPart


def test_all_that_is_done_inside_is_summed_but_for_what_is_left_out() -> None:
    part, began = TimedPart(), time.monotonic()
    for _ in range(2):
        with part:
            time.sleep(0.01)
            with part.left_out():
                time.sleep(0.02)
    whole, spent = time.monotonic() - began, part.spent()
    assert 0.02 <= spent["seconds"] <= round(whole - 0.04, 3), "both to the millisecond"
    assert 0 <= spent["cpu_seconds"] <= spent["seconds"] + 0.02, "sleeping takes no processor"


def test_of_a_part_that_goes_on_is_told_what_came_since() -> None:
    part = TimedPart()
    with part:
        time.sleep(0.02)
    before = part.spent()
    assert part.since(before) == {"seconds": 0.0, "cpu_seconds": 0.0}
    with part:
        time.sleep(0.01)
    assert part.since(before)["seconds"] == round(part.spent()["seconds"] - before["seconds"], 3) > 0
