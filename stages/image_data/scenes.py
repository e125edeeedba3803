"""Rendered scenes with a known content: coloured shapes on a grid. Same seed, same scenes, same bytes."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw

COLORS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220), "yellow": (230, 210, 50)}
SHAPES = ("circle", "square", "triangle")
THINGS = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)
SIDE, PLACES = 7 / 8, 2
"""A thing fills seven eighths of its cell's side, at one of 2 x 2 places: two places of one cell have an IoU of 0.58 or
more.
"""


@dataclass(frozen=True)
class Thing:
    """One coloured shape; box is x1, y1, x2, y2 in pixels."""

    color: str
    shape: str
    row: int
    column: int
    box: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        """'red circle'."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Things in reading order; no two look the same."""

    things: tuple[Thing, ...]
    grid: int
    size: int
    grey: int

    @property
    def layout(self) -> tuple[tuple[int, int, str], ...]:
        """What is where: scenes of one layout differ by a few pixels only, so none is in both train and test."""
        return tuple((thing.row, thing.column, thing.name) for thing in self.things)

    def named(self, color: str | None = None, shape: str | None = None) -> list[Thing]:
        """The things of a colour, a shape, or both."""
        return [t for t in self.things if color in (None, t.color) and shape in (None, t.shape)]

    def caption(self) -> str:
        """Every cell in reading order."""
        at = {(thing.row, thing.column): thing.name for thing in self.things}
        return ", ".join(at.get((row, column), "empty") for row in range(self.grid) for column in range(self.grid))

    def sentence(self) -> str:
        """The things as a sentence, for rows without an image."""
        return "There is " + " and ".join(f"a {thing.name}" for thing in self.things) + "."

    def jpeg(self) -> bytes:
        """The picture, as the data sets keep theirs."""
        image = Image.new("RGB", (self.size, self.size), (self.grey,) * 3)
        draw = ImageDraw.Draw(image)
        for thing in self.things:
            x1, y1, x2, y2 = thing.box
            fill = COLORS[thing.color]
            if thing.shape == "circle":
                draw.ellipse(thing.box, fill=fill)
            elif thing.shape == "square":
                draw.rectangle(thing.box, fill=fill)
            else:
                draw.polygon([((x1 + x2) // 2, y1), (x1, y2), (x2, y2)], fill=fill)
        out = io.BytesIO()
        image.save(out, format="JPEG", quality=95, subsampling=0)
        return out.getvalue()


def draw_scene(rng: random.Random, grid: int, size: int) -> Scene:
    """One scene: 1 to grid x grid different things, each in a cell of its own."""
    cells = [(row, column) for row in range(grid) for column in range(grid)]
    count = rng.randint(1, min(len(cells), len(THINGS)))
    step = size // grid
    things = []
    for (row, column), name in zip(sorted(rng.sample(cells, count)), rng.sample(THINGS, count), strict=True):
        side = round(SIDE * step)
        x, y = (at * step + rng.randrange(PLACES) * (step - side) // (PLACES - 1) for at in (column, row))
        color, _, shape = name.partition(" ")
        things.append(Thing(color, shape, row, column, (x, y, x + side, y + side)))
    return Scene(tuple(things), grid, size, rng.randint(225, 250))


def scenes(rng: random.Random, grid: int, size: int, avoid: frozenset[object] = frozenset()) -> Iterator[Scene]:
    """Endless scenes, none with a layout in `avoid`."""
    while True:
        scene = draw_scene(rng, grid, size)
        if scene.layout not in avoid:
            yield scene
