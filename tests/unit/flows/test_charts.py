"""A training's metrics as one SVG document."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from flows.charts import panels_svg

ROWS: list[dict[str, float]] = [
    {"step": 1, "loss": 3.0, "learning_rate": 0.1},
    {"step": 2, "loss": 2.0, "val_loss": 2.5, "learning_rate": 0.2},
    {"step": 3},
]
PANELS = [("loss", ["loss", "val_loss"]), ("learning rate", ["learning_rate"])]


def test_it_is_one_svg_document_and_the_same_each_time() -> None:
    once = panels_svg(ROWS, PANELS, "pretrain_1")
    assert ElementTree.fromstring(once).tag == "{http://www.w3.org/2000/svg}svg"
    assert panels_svg(ROWS, PANELS, "pretrain_1") == once
    assert "<dc:date>" not in once


def test_panels_curves_held_out_points_and_the_result_before_are_named() -> None:
    text = panels_svg(ROWS, PANELS, "pretrain_1", former=[{"step": 1, "loss": 4.0}])
    words = ("pretrain_1", "loss", "val_loss", "learning rate", "step", "loss, before")
    assert not [word for word in words if f"<!-- {word} -->" not in text]
    assert "before" not in panels_svg(ROWS, PANELS, "pretrain_1")


def test_what_is_not_right_is_marked_in_its_panel_alone() -> None:
    plain, marked = (panels_svg(ROWS, PANELS, "a", marks=marks) for marks in (None, {"loss": [2], "kl": [1]}))
    assert "#c0312b" not in plain
    assert marked.count("#c0312b") == 1


@pytest.mark.parametrize("rows", [[], [{"step": 1}], [{"loss": 1.0}]])
def test_nothing_to_draw_is_an_empty_chart_not_an_error(rows: list[dict[str, Any]]) -> None:
    for panels in ([], PANELS):
        root = ElementTree.fromstring(panels_svg(rows, panels, "a"))
        assert "legend" not in {element.get("id", "").partition("_")[0] for element in root.iter()}
