"""The table of retries: how an attempt ended x whether it saved something x what was tried before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.retry import FIRST_PAUSE, LONGEST_PAUSE, Tries, judge
from stages.core.errors import ExitClass

OOM, PREEMPTED, INFRA = ExitClass.OOM, ExitClass.PREEMPTED, ExitClass.INFRA


@pytest.mark.parametrize("ended", [ExitClass.CONFIG, ExitClass.INPUT, ExitClass.BUG])
@pytest.mark.parametrize("progress", [False, True])
def test_what_would_end_the_same_way_is_never_tried_again(ended: ExitClass, progress: bool) -> None:
    assert not judge(ended, progress, Tries(), 9, 900, smaller=True).again


@pytest.mark.parametrize(
    ("ended", "progress", "used", "smaller", "again", "used_then"),
    [
        (PREEMPTED, False, 0, False, True, 1),
        (PREEMPTED, False, 1, False, True, 2),
        (PREEMPTED, False, 2, False, False, 2),
        (PREEMPTED, True, 0, False, True, 0),
        (PREEMPTED, True, 2, False, True, 0),  # none is needed, and those used before are given back
        (OOM, False, 0, False, False, 0),
        (OOM, True, 0, False, False, 0),  # a checkpoint makes no room
        (OOM, False, 0, True, True, 1),
        (OOM, True, 0, True, True, 0),
        (OOM, False, 2, True, False, 2),
        (INFRA, False, 2, False, True, 2),
        (INFRA, True, 2, False, True, 0),
    ],
)
def test_the_table(ended: ExitClass, progress: bool, used: int, smaller: bool, again: bool, used_then: int) -> None:
    verdict = judge(ended, progress, Tries(used=used), 2, 900, smaller)
    assert (verdict.again, verdict.tries.used) == (again, used_then)
    assert verdict.smaller == (again and ended is OOM)
    assert (verdict.pause > 0) == (ended is INFRA)
    assert verdict.why


@pytest.mark.parametrize("ended", [OOM, PREEMPTED])
@pytest.mark.parametrize("progress", [False, True])
def test_no_retries_means_none(ended: ExitClass, progress: bool) -> None:
    assert not judge(ended, progress, Tries(), 0, 900, smaller=True).again


@given(st.lists(st.floats(0, 1), min_size=200, max_size=200), st.floats(0, 5000))
def test_pauses_grow_have_chance_in_them_and_last_as_long_as_patience(chances: list[float], patience: float) -> None:
    tries, pauses = Tries(), []
    for chance in chances:
        verdict = judge(INFRA, False, tries, 0, patience, chance=chance)
        if not verdict.again:
            break
        pauses.append(verdict.pause)
        tries = verdict.tries
    else:
        pytest.fail("it never gives up")
    assert sum(pauses) == pytest.approx(patience)
    for number, pause in enumerate(pauses[:-1]):
        full = min(LONGEST_PAUSE, FIRST_PAUSE * 2**number)
        assert full / 2 <= pause <= full * 1.5


def test_the_default_outlasts_a_store_that_is_away_for_ten_minutes() -> None:
    from flows.profiles import ProfileFile

    patience = ProfileFile().patience
    tries = Tries()
    while tries.spent <= 600:
        pause = tries.pause(patience, chance=1.0)
        assert pause is not None
        tries = tries.after_pause(pause)
    assert tries.pause(patience, chance=1.0), "there is one more try once it is back"


def test_progress_starts_patience_anew() -> None:
    worn = Tries(used=1, spent=899, pauses=20)
    fresh = judge(INFRA, True, worn, 2, 900, chance=0.5)
    assert (fresh.pause, fresh.tries.spent, fresh.tries.used) == (FIRST_PAUSE, FIRST_PAUSE, 0)
    assert judge(INFRA, False, worn, 2, 900, chance=0.5).pause == 1


def test_patience_of_a_week_has_pauses_to_its_end() -> None:
    worn = Tries(spent=500_000, pauses=9_000)
    assert worn.pause(604_800, chance=0.5) == LONGEST_PAUSE


def test_a_long_attempt_that_gets_nowhere_is_made_twice_not_twenty_times() -> None:
    """Three hours each, patience of 15 minutes: the first failure may have been chance, the second ends it."""
    tries, attempts = Tries(), 0
    while True:
        attempts += 1
        verdict = judge(INFRA, False, tries.after_attempt(INFRA, 3 * 3600, 900), 2, 900)
        if not verdict.again:
            break
        tries = verdict.tries
    assert attempts == 2
    assert "given up after 15 min of trying" in verdict.why
    forward = judge(INFRA, True, tries.after_attempt(INFRA, 3 * 3600, 900), 2, 900)
    assert forward.again, "a new checkpoint makes good all that was spent"
    assert tries.after_attempt(PREEMPTED, 3600, 900) == tries, (
        "what was stopped from outside is no trouble with the store"
    )


def test_hours_of_work_between_two_short_outages_are_not_part_of_either() -> None:
    """A stage without checkpoints: it cannot start for 10 s, works for an hour, and the store is away once more."""
    tries = Tries()
    for seconds in (1, 1, 1, 3600, 1, 1):
        verdict = judge(INFRA, False, tries.after_attempt(INFRA, seconds, 900), 2, 900, chance=0.5)
        assert verdict.again
        tries = verdict.tries
    assert tries.spent < 60, "the second outage alone"
    assert not judge(INFRA, False, tries.after_attempt(INFRA, 3600, 900), 2, 900).again, "nor is it made for ever"


def test_months_of_interruptions_end_nothing_while_there_is_progress_between_them() -> None:
    """35 time limits, and after every third of them a node is lost before the next checkpoint."""
    tries = Tries()
    for number in range(35):
        for progress in (True, False) if number % 3 == 0 else (True,):
            verdict = judge(PREEMPTED, progress, tries, 2, 900)
            assert verdict.again, f"given up at interruption {number}"
            tries = verdict.tries
