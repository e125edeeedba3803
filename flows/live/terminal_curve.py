"""A curve drawn with Braille characters, two columns and four rows of dots in each: for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Of a Braille character, by row and column (Unicode 2800)."""
Points = Sequence[tuple[float, float]]


def drawn(curves: Sequence[Points], width: int, height: int) -> list[tuple[str, list[tuple[str, int]]]]:
    """Lines of a chart, each with its label at the left and its characters, each with the number of the curve on top.

    Curves share both axes; of the dots that two want, the first curve's is shown. Nothing to draw: no lines.
    """
    points = [[(x, y) for x, y in curve if math.isfinite(x) and math.isfinite(y)] for curve in curves]
    every = [point for curve in points for point in curve]
    if not every:
        return []
    low_x, high_x = min(x for x, _ in every), max(x for x, _ in every)
    low_y, high_y = min(y for _, y in every), max(y for _, y in every)
    masks = [[0] * width for _ in range(height)]
    owners = [[-1] * width for _ in range(height)]
    for number, curve in enumerate(points):
        for column, row in _dots(curve, (low_x, high_x), (low_y, high_y), 2 * width, 4 * height):
            cell = masks[row // 4], owners[row // 4]
            if cell[1][column // 2] in (-1, number):
                cell[0][column // 2] |= DOTS[row % 4][column % 2]
                cell[1][column // 2] = number
    lines: list[tuple[str, list[tuple[str, int]]]] = []
    for index in range(height):
        value = {0: high_y, height - 1: low_y}.get(index)
        label = f"{value:>9.4g} " if value is not None else " " * 10
        row = zip(masks[index], owners[index], strict=True)
        lines.append((label, [(chr(0x2800 + mask), owner) for mask, owner in row]))
    return lines


def _dots(
    curve: Points, xs: tuple[float, float], ys: tuple[float, float], columns: int, rows: int
) -> list[tuple[int, int]]:
    """The dots of a curve: in each column from its lowest value there to its highest, and on to the column before."""
    by_column: dict[int, list[int]] = {}
    for x, y in curve:
        column = round((x - xs[0]) / ((xs[1] - xs[0]) or 1.0) * (columns - 1))
        row = round((ys[1] - y) / ((ys[1] - ys[0]) or 1.0) * (rows - 1))
        by_column.setdefault(column, []).append(row)
    dots: list[tuple[int, int]] = []
    last: tuple[int, int] | None = None
    for column in sorted(by_column):
        values = by_column[column]
        if last is not None:  # a straight line over the columns without a value
            for between in range(last[0] + 1, column):
                share = (between - last[0]) / (column - last[0])
                dots.append((between, round(last[1] + share * (values[0] - last[1]))))
        dots += [(column, row) for row in range(min(values), max(values) + 1)]
        last = column, values[-1]
    return dots
