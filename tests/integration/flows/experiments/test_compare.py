"""Comparing: what differs and what is shared, scores with errors, and that a mixture of runs is said."""

from __future__ import annotations

import pytest

from flows import experiments
from flows.experiments import text
from flows.experiments.compare import compare, sides
from flows.experiments.page import render
from stages.core.errors import ConfigError
from stages.core.ledger import Ledger
from stages.core.records import NodeRecord
from stages.pipeline import PIPELINE
from tests.support.family_ledger import republish
from tests.support.report_pages import Page


def test_what_is_shared_is_the_same_and_what_differs_is_named(tuned: Ledger) -> None:
    data = compare(tuned, PIPELINE, sides(tuned, PIPELINE, ["tiny", "lr"]))
    assert [row["node"] for row in data["nodes"] if not row["same"]] == ["sft_tulu"]
    (change,) = data["settings"]
    assert change["change"].startswith("sft_tulu.learning_rate ")
    assert change["change"].endswith(" -> 0.0003")
    assert data["statistics"] == [{"node": "sft_tulu", "statistic": "final_loss", "values": [2.5, 2.25]}]
    assert data["scores"] == [], "the evaluation is of the parent, which they share"
    first, other = data["sides"]
    assert (first["own_results"], other["own_results"], other["why"]) == (len(data["nodes"]), 1, "a higher rate")
    assert other["core_hours"] == pytest.approx(91.5 / 3600)
    titles = [title for title, _ in text.tables(data)]
    assert titles == ["what is compared", "settings (against tiny)", "statistics that differ"]
    page = Page(render(data))
    assert "tiny and lr compared" in page.text
    assert "2.25" in page.text


def test_a_mixture_of_runs_is_said(tuned: Ledger) -> None:
    republish(tuned, tuned.manifest(tuned.nodes("tiny")["instructions_tulu"].key)[0], "anew", outputs={})  # type: ignore[index]
    data = compare(tuned, PIPELINE, sides(tuned, PIPELINE, ["tiny", "lr"]))
    assert "tiny mixes results of several runs: sft_tulu: its input conversations came from another" in data["notes"][0]


def test_what_one_has_alone_is_no_difference(tuned: Ledger) -> None:
    tuned.store.delete([f"nodes/tiny@lr/{name}.json" for name in tuned.nodes("tiny") if name != "sft_tulu"])
    data = compare(tuned, PIPELINE, sides(tuned, PIPELINE, ["tiny", "lr"]))
    assert [row["node"] for row in data["statistics"]] == ["sft_tulu"]
    assert any(
        note.startswith("lr has no result of ") and note.endswith("nothing is said of these") for note in data["notes"]
    )


def test_differences_have_errors() -> None:
    first, other = ({"value": value, "stderr": 0.03, "n": 100} for value in (0.5, 0.54))
    assert text.difference(first, other) == "+4.0 ±4.2"
    assert text.score(first) == "50.0 ±3.0"
    assert text.difference(first, None) == "-"
    assert text.difference(first | {"stderr": None}, other) == "+4.0"


def test_what_cannot_be_compared_is_said(tuned: Ledger) -> None:
    for names, message in (
        (["tiny"], "two names"),
        (["lr", "lr"], "lr is given twice"),
        (["tiny", "lrr"], "did you mean 'lr'"),
        (["tiny", "7b"], "7b has no results yet"),
    ):
        with pytest.raises(ConfigError, match=message):
            sides(tuned, PIPELINE, names)
    tuned.set_node("small", NodeRecord(node="collect", key=tuned.nodes("tiny")["collect"].key, run_id="r", at="2026"))
    with pytest.raises(ConfigError, match=r"different profiles \(tiny, small\)"):
        sides(tuned, PIPELINE, ["tiny", "small"])
    experiments.begun(tuned, "empty", "tiny", PIPELINE, ["sft_tulu.seed=9"])
    with pytest.raises(ConfigError, match="empty has no results yet"):
        sides(tuned, PIPELINE, ["tiny", "empty"])
