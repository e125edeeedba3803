"""Plots with numbers in the page: what stands there is what was measured, and cannot end its element."""

from __future__ import annotations

import html.parser
import json
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flows.charts import Phase
from flows.report import plots
from flows.report.markup import Markup


class Numbers(html.parser.HTMLParser):
    """The JSON in a figure, as a browser takes it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.json, self.tags = "", []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["script"] and not self.json:
            self.json = data


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_name_ends_the_element_that_the_numbers_stand_in(name: str, label: str) -> None:
    for hostile in (name, f"</script><img src=x>{name}", f"<!--<script>{name}"):
        panel = plots.panel(label, [plots.line(hostile, [1, 2], [0.5, 0.25])])
        page = Numbers(plots.figure(Markup("<svg></svg>"), "about", "steps", [panel]))
        assert page.tags == ["figure", "div", "svg", "script", "figcaption"]
        assert json.loads(page.json)["panels"][0]["lines"][0]["name"] == hostile


@given(st.lists(st.tuples(st.integers(0, 10**13), st.floats(-1e30, 1e30)), max_size=30))
def test_numbers_stay_what_they_are_in_six_digits(points: list[tuple[int, float]]) -> None:
    line = plots.line("a", [x for x, _ in points], [y for _, y in points])
    assert line["x"] == sorted(x for x, _ in points)
    for x, y in zip(line["x"], line["y"], strict=True):
        assert any(x == a and math.isclose(y, b, rel_tol=1e-5) for a, b in points)


def test_what_is_not_finite_is_a_gap_and_panels_without_rows_are_not_drawn() -> None:
    rows = [{"tokens": 1, "loss": 2.0, "val_loss": 3.0}, {"tokens": 2, "loss": math.nan}]
    panels = plots.phases([Phase("one", 100, rows)])
    page = Numbers(plots.figure(Markup("<svg></svg>"), "", "tokens", panels))
    (panel,) = json.loads(page.json)["panels"]
    assert [(line["name"], line["x"], line["y"], line["dots"]) for line in panel["lines"]] == [
        ("one", [101, 102], [2.0, None], False),
        ("one, held out", [101], [3.0], True),
    ]


def test_only_the_pages_own_scripts_may_run() -> None:
    library, ours = plots.scripts()
    assert "Leon Sorokin" in library, "its licence goes with it"
    assert "</script" not in library + ours
    assert plots.policy().count("'sha256-") == 2
    assert "http" not in plots.policy()
