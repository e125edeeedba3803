"""Loss curves as SVG."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from flows.charts import curves_svg

ROWS = [
    {"step": 1, "tokens": 10, "loss": 3.0},
    {"step": 2, "tokens": 20, "loss": 2.0, "val_loss": 2.5},
    {"step": 3, "tokens": 30},
]


def drawing(*args: object, **options: object) -> ElementTree.Element:
    return ElementTree.fromstring(curves_svg(*args, **options))  # type: ignore[arg-type]


def words(*args: object, **options: object) -> str:
    return curves_svg(*args, **options)  # type: ignore[arg-type]


def test_it_is_one_svg_document_and_the_same_each_time() -> None:
    once = curves_svg({"pretrain_1": ROWS}, "Loss")
    assert ElementTree.fromstring(once).tag == "{http://www.w3.org/2000/svg}svg"
    assert curves_svg({"pretrain_1": ROWS}, "Loss") == once
    assert "<dc:date>" not in once


def test_a_curve_and_its_held_out_points_are_drawn_and_named() -> None:
    text = words({"pretrain_1": ROWS}, "Loss")
    assert "<!-- pretrain_1 -->" in text
    assert "<!-- pretrain_1, held out -->" in text
    assert "<!-- Loss -->" in text


def test_a_series_without_held_out_rows_gets_no_points() -> None:
    assert "held out" not in words({"a": ROWS[:1]}, "Loss")


def test_each_series_has_its_own_colour() -> None:
    two = words({"a": ROWS, "b": ROWS}, "Loss")
    assert "#1f77b4" in two
    assert "#ff7f0e" in two
    assert "#ff7f0e" not in words({"a": ROWS}, "Loss")


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [{"step": 1}]}, {"a": [{"loss": 1.0}]}])
def test_nothing_to_draw_is_an_empty_chart_not_an_error(series: dict[str, list[dict[str, float]]]) -> None:
    root = drawing(series, "Loss")
    assert "legend" not in {element.get("id", "").partition("_")[0] for element in root.iter()}


def test_other_fields_and_axes() -> None:
    text = words(
        {"a": [{"tokens": 10, "reward": 0.1}, {"tokens": 20, "reward": 0.4}]}, "Reward", field="reward", x="tokens"
    )
    assert "<!-- training tokens -->" in text
    assert "<!-- reward -->" in text
