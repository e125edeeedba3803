"""`stages.lib.training.export`: who writes which file."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stages.lib.training.export import writers


@given(st.integers(0, 40), st.integers(1, 80))
def test_files_are_spread_over_the_processes(count: int, processes: int) -> None:
    files = [f"f{number}" for number in range(count)]
    found = writers(files, processes)
    loads = [list(found.values()).count(rank) for rank in range(processes)]
    assert list(found) == files
    assert sum(loads) == count
    assert max(loads) <= -(-count // processes)
    assert not count or found["f0"] == 0


def test_seven_files_of_64_processes_come_from_seven_machines() -> None:
    assert [rank // 8 for rank in writers("abcdefg", 64).values()] == [0, 1, 2, 3, 4, 5, 6]
