"""A process that hangs, in Python's code or in a library's: it and those that wait for it say where, and end."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from stages.core.errors import ExitClass
from tests.support.limits import HANG

PROCESS = """
    import ctypes, datetime, sys, time
    from stages.lib.training import stalls
    stalls.LOOK = datetime.timedelta(seconds=0.05)
    stalls.PARTING = datetime.timedelta(seconds=0.05)
    stalls.LOCKED = datetime.timedelta(seconds=0.2)
    stalls.STEPS = 0

    class Context:
        def log(self, message, level="info"):
            print(level, message, file=sys.stderr)

    def waits_for_nobody():
        {hang}

    with stalls.StallWatch(Context(), {seconds}, rank=3) as watch:
        with watch.paused():
            time.sleep(1.3)     # neither this
        time.sleep(1.3)         # nor what comes before the second step counts
        watch.step()
        watch.step()
        with watch.paused():
            time.sleep(1.3)
        watch.step()
        waits_for_nobody()
    print("over", file=sys.stderr)
"""


def ended(hang: str, seconds: float = 1.0) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROCESS.format(hang=hang, seconds=seconds))],
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_process_that_takes_no_step_says_where_it_is_and_ends_as_preempted() -> None:
    code, told = ended("ctypes.CDLL(None).sleep(600)")
    assert code == ExitClass.PREEMPTED.code
    assert "process 3: no step for 1 s; where its threads are" in told
    assert "in waits_for_nobody" in told
    assert "error no step for 1 s: the training stalled" in told


def test_a_process_that_hangs_with_the_interpreters_lock_says_where_it_is_and_ends() -> None:
    code, told = ended("ctypes.PyDLL(None).sleep(600)")
    assert code == 1
    assert "in waits_for_nobody" in told


def test_one_that_is_done_is_left_alone() -> None:
    assert ended("time.sleep(0)", HANG) == (0, "over\n")
