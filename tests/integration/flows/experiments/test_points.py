"""The points of a sweep: which there are, what they are called, and what each would run."""

from __future__ import annotations

import pytest

from flows.experiments.points import open_points, plan_points, points
from stages.core.errors import ConfigError
from stages.core.ledger import Ledger
from stages.pipeline import PIPELINE
from tests.support.family_ledger import publish_family

RATES = "sft_tulu.learning_rate=[1e-3, 2e-3]"


def test_every_combination_is_a_point_with_a_name_that_says_it() -> None:
    chosen = points("lr", [RATES, 'sft_tulu.engine=["trl"]'], ["sft_tulu.epochs=2 sft_tulu.seed=1"], ["parallel=1"])
    assert [(point.name, point.settings) for point in chosen] == [
        ("lr.0.001-trl", 'sft_tulu.learning_rate=0.001 sft_tulu.engine="trl"'),
        ("lr.0.002-trl", 'sft_tulu.learning_rate=0.002 sft_tulu.engine="trl"'),
        ("lr.2-1", "sft_tulu.epochs=2 sft_tulu.seed=1"),
    ]
    assert chosen[2].overrides == ("parallel=1", "sft_tulu.epochs=2", "sft_tulu.seed=1")
    long = points("lr", ['sft_tulu.prompts=[["what is regularization in machine learning?"], ["why"]]'])
    assert [point.name for point in long] == ["lr.1", "lr.2"]
    alike = points("lr", ["sft_tulu.seed=[1]"], ["sft_tulu.epochs=1"])
    assert [point.name for point in alike] == ["lr.1", "lr.2"]


@pytest.mark.parametrize(
    ("grid", "listed", "says"),
    [
        ([], [], "give --grid"),
        (["sft_tulu.seed=1"], [], r"--grid sft_tulu\.seed=1: write node\.field=\[value, value\]"),
        (["sft_tulu.seed=[]"], [], "write node.field"),
        ([], ["seed"], "--point 'seed': write node.field=value"),
        (["sft_tulu.seed=[1, 1]"], [], r"the point sft_tulu\.seed=1 is there twice"),
        ([f"sft_tulu.seed={list(range(101))}"], [], "these are 101 points, and 100 are allowed"),
    ],
)
def test_a_mistake_in_a_grid_is_told(grid: list[str], listed: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        points("lr", grid, listed)


def test_what_points_share_is_run_by_the_first_alone(ledger: Ledger) -> None:
    chosen = points("lr", [RATES])
    values = open_points(ledger, "tiny", PIPELINE, chosen, begin=False)
    assert not ledger.experiments()
    first, second = plan_points(ledger, PIPELINE, chosen, values, "+dpo_tulu", False)
    assert {"collect", "pretrain_3", "instructions_tulu", "preferences_tulu", "sft_tulu"} <= set(first["run"])
    assert (second["run"], second["settings"]) == (["sft_tulu", "dpo_tulu"], ["sft_tulu.learning_rate=0.002"])
    assert set(second["shared"]) == set(first["run"]) - {"sft_tulu", "dpo_tulu"}
    assert not first["shared"]


def test_points_are_begun_all_or_none(ledger: Ledger) -> None:
    publish_family(ledger)
    open_points(ledger, "tiny", PIPELINE, points("lr", [RATES]), "to see")
    records = ledger.experiments()
    assert [(each.name, each.why) for each in records] == [("lr.0.001", "to see"), ("lr.0.002", "to see")]
    open_points(ledger, "tiny", PIPELINE, points("lr", [RATES]))  # again: they are gone on with
    with pytest.raises(ConfigError, match="did you mean 'learning_rate'"):
        open_points(ledger, "tiny", PIPELINE, points("other", ["sft_tulu.seed=[1]"], ["sft_tulu.learning_rat=1"]))
    assert ledger.experiments() == records
