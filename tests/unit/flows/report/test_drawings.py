"""Pictures that are kept are those that would be drawn."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flows import charts
from flows.report import drawings

PHASE = charts.Phase("pretrain_1", 0.0, [{"tokens": 1.0, "loss": 2.5}, {"tokens": 2.0, "loss": float("nan")}])


class Drawer:
    """Stands for a function of `flows.charts`; counts what it draws."""

    def __init__(self, name: str = "phases_svg") -> None:
        self.__name__, self.drawn = name, list[tuple[object, ...]]()

    def __call__(self, *values: object) -> str:
        self.drawn.append(values)
        return f"<svg>{self.__name__} {values}</svg>"


def test_a_picture_is_drawn_once_for_the_same_numbers(tmp_path: Path) -> None:
    draw, folder = Drawer(), tmp_path / "new" / "pictures"
    for _ in range(2):
        with drawings.kept_in(folder):
            assert drawings.svg(draw, [PHASE]) == f"<svg>phases_svg {([PHASE],)}</svg>"
    assert len(draw.drawn) == 1
    other = charts.Phase("pretrain_1", 0.0, [{"tokens": 1.0, "loss": 2.6}])
    with drawings.kept_in(folder):
        assert "2.6" not in drawings.svg(draw, [PHASE])
        drawings.svg(draw, [other])
        drawings.svg(draw, [PHASE], "step")
    assert len(draw.drawn) == 3
    another = Drawer("lines_svg")
    with drawings.kept_in(folder):
        assert drawings.svg(another, [PHASE]).startswith("<svg>lines_svg")
    assert len(list(folder.iterdir())) == 4


def test_other_code_or_another_matplotlib_draws_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Drawer()
    for version in ("3.1", "3.2"):
        monkeypatch.setattr(drawings, "_drawn_by", lambda version=version: ("code", version))
        with drawings.kept_in(tmp_path):
            drawings.svg(draw, [PHASE])
    assert len(draw.drawn) == 2


def test_without_a_folder_everything_is_drawn() -> None:
    draw = Drawer()
    drawings.svg(draw, [PHASE])
    with drawings.kept_in(None):
        drawings.svg(draw, [PHASE])
    assert len(draw.drawn) == 2


def test_a_folder_that_cannot_be_written_or_read_is_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    draw = Drawer()
    with drawings.kept_in(tmp_path / "file" / "pictures"):
        assert drawings.svg(draw, [PHASE]).startswith("<svg>")
    with drawings.kept_in(tmp_path):
        drawings.svg(draw, [PHASE])
        (picture,) = tmp_path.glob("*.svg")
        picture.write_bytes(b"\xff")
        assert drawings.svg(draw, [PHASE]).startswith("<svg>")


def test_what_no_report_has_shown_for_long_goes(tmp_path: Path) -> None:
    draw = Drawer()
    with drawings.kept_in(tmp_path):
        drawings.svg(draw, [PHASE])
        drawings.svg(draw, "shown again")
    for path in tmp_path.iterdir():
        os.utime(path, (1.0, 1.0))
    with drawings.kept_in(tmp_path):
        drawings.svg(draw, "shown again")
    assert len(list(tmp_path.iterdir())) == 1
    assert len(draw.drawn) == 2
