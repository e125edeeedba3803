"""Curves in Braille characters."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flows.live.terminal_curve import drawn

VALUES = st.floats(allow_nan=True, allow_infinity=True)


def text(lines: list[tuple[str, list[tuple[str, int]]]]) -> list[str]:
    return ["".join(character for character, _ in cells) for _, cells in lines]


def test_a_falling_line_runs_from_the_upper_left_to_the_lower_right() -> None:
    lines = drawn([[(0, 8.0), (7, 0.0)]], 4, 2)
    assert text(lines) == ["⠑⢄⠀⠀", "⠀⠀⠑⢄"]
    assert [label.strip() for label, _ in lines] == ["8", "0"]


def test_of_two_curves_the_first_is_on_top() -> None:
    ((_, cells),) = drawn([[(0, 1.0), (3, 1.0)], [(0, 1.0), (7, 1.0)]], 4, 1)
    assert [owner for _, owner in cells] == [0, 0, 1, 1]


@given(st.lists(st.lists(st.tuples(VALUES, VALUES), max_size=20), max_size=3), st.integers(1, 40), st.integers(1, 9))
def test_any_points_fit(curves: list[list[tuple[float, float]]], width: int, height: int) -> None:
    small = [[(x / 4, y / 4) for x, y in curve] for curve in curves]  # a range beyond the largest float is no range
    lines = drawn(small, width, height)
    assert not lines or (len(lines) == height and all(len(cells) == width for _, cells in lines))
