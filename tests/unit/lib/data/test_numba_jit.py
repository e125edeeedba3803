"""How long compiling takes is told apart from a stage's work."""

from __future__ import annotations

from typing import Any

import numba

from stages.core.timed_part import ONCE
from stages.lib.data import numba_jit


def test_what_is_compiled_counts_as_done_once_a_machine_and_calls_do_not() -> None:
    assert numba_jit.fmix64 is not None
    jit: Any = numba.njit  # type: ignore[attr-defined]

    @jit
    def inner(value: int) -> int:
        return value * 2

    @jit
    def outer(value: int) -> int:
        return inner(value) + 1

    before = ONCE.spent()["seconds"]
    assert outer(3) == 7
    after = ONCE.spent()
    assert after["seconds"] > before
    assert after["cpu_seconds"] > 0
    assert outer(4) == 9
    assert ONCE.spent() == after


def test_functions_within_one_are_compiled_within_its_time() -> None:
    listener: Any = numba_jit._Compiling()
    whole = ONCE.spent()
    listener.on_start(None)
    listener.on_start(None)
    listener.on_end(None)
    assert ONCE.spent() == whole, "the outer one is still under way"
    listener.on_end(None)
    assert ONCE.spent()["seconds"] >= whole["seconds"]
