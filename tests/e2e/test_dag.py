"""The whole DAG in one run; the same again, which starts nothing; one field changed, which reruns what it can reach."""

from __future__ import annotations

from typing import Any

import pytest

from stages.pipeline import PIPELINE
from tests.support.installation import SMALL, Installation, sets

pytestmark = pytest.mark.e2e
CHANGED = {"preferences_infinity.seed": 12}
REACHED = {"preferences_infinity", *PIPELINE.descendants("preferences_infinity")}
"""Data, a training, its evaluation, and a node that reads much else: the fewest nodes that are all of these."""


def run(installation: Installation, overrides: dict[str, Any]) -> dict[str, str]:
    """`moxin run` of everything; {node: state}."""
    found = installation.json("run", *sets(overrides))
    assert found["ok"], found["message"]
    return {row["name"]: row["state"] for row in found["nodes"]}


def attempts(installation: Installation) -> set[str]:
    """Every attempt at anything: a stage process leaves its log there."""
    return {str(path) for path in (installation.home / "logs" / "stages").glob("*/*.jsonl")}


@pytest.fixture(scope="module", autouse=True)
def first(installation: Installation) -> dict[str, str]:
    """The whole pipeline. What other tests of this session made at these values already is answered from the ledger."""
    return run(installation, SMALL)


def test_one_run_goes_from_raw_pages_to_evaluated_models(installation: Installation, first: dict[str, str]) -> None:
    assert set(first) == set(PIPELINE.nodes)
    assert set(first.values()) <= {"done", "cached"}
    assert first["evaluate_enhanced"] == "done"
    losses = [installation.metrics(f"pretrain_{phase}") for phase in (1, 2, 3)]
    assert losses[0][-1]["loss"] < losses[0][0]["loss"]
    for name in ("evaluate_original", "evaluate_enhanced"):
        stats = installation.json("show", name)["stats"]
        assert {"table_2 average", "table_3 average", "table_2/toy-piqa", "table_3/toy-mmlu"} <= set(stats)
        assert all(0 <= value <= 1 for key, value in stats.items() if "/" in key or key.endswith("average"))
        assert stats["comparable_to_paper"] is False
    assert installation.json("show", "capability")["stats"]["train_test_overlap"] == 0


def test_the_same_run_again_is_answered_without_starting_a_stage(installation: Installation) -> None:
    before = attempts(installation)
    assert set(run(installation, SMALL).values()) == {"cached"}
    assert attempts(installation) == before


def test_a_changed_field_reruns_exactly_what_it_reaches_and_why_names_it(installation: Installation) -> None:
    changed = sets(SMALL | CHANGED)
    assert installation.json("why", "preferences_infinity", *changed)["reason"] == "seed 11 -> 12"
    why = installation.json("why", "evaluate_dpo_infinity", *changed)
    assert [(cause["name"], cause["reason"]) for cause in why["because"]] == [("preferences_infinity", "seed 11 -> 12")]
    rows = installation.json("plan", *changed)["nodes"]
    assert {row["name"] for row in rows if row["will_run"]} == REACHED
    assert {"dpo_infinity", "evaluate_dpo_infinity", "contamination"} < REACHED
    states = run(installation, SMALL | CHANGED)
    assert {name for name, state in states.items() if state == "done"} == REACHED
    assert {name for name, state in states.items() if state == "cached"} == set(PIPELINE.nodes) - REACHED
    assert set(run(installation, SMALL).values()) == {"cached"}, "the earlier values are still in the ledger"
