"""The whole DAG in one run; the same again, which starts nothing; one field changed, which reruns what it can reach."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from stages.pipeline import PIPELINE
from tests.support.installation import SMALL, Installation, sets
from tests.support.paths import ROOT

pytestmark = pytest.mark.e2e
TINY = tomllib.loads((ROOT / "infra/profiles/tiny.toml").read_text(encoding="utf-8"))


def few_questions(node: str) -> list[dict[str, Any]]:
    """A node's suites in the tiny profile, of each task the first questions only."""
    suites = TINY["node"].get(node, {}).get("suites", TINY["stage"]["evaluate"]["suites"])
    return [{**({"base": suite} if isinstance(suite, str) else suite), "limit": 8} for suite in suites]


#: What `SMALL` is for the data and their first trainings, for all that follows them.
WHOLE = SMALL | {
    "capability.train_questions": 300,
    "capability.test_questions": 60,
    **{f"{name}.rows": 400 for name in ("instructions_tulu", "instructions_infinity", "problems")},
    **{f"{name}.rows": 300 for name in ("reasoning_traces", "preferences_tulu", "preferences_infinity")},
    **{f"{name}.eval_rows": 24 for name, node in PIPELINE.nodes.items() if node.stage in ("sft", "dpo")},
    "sft_reason.epochs": 2,
    **{f"{name}.max_rows": 160 for name, node in PIPELINE.nodes.items() if node.stage == "dpo"},
    **{f"{name}.eval_problems": 24 for name, node in PIPELINE.nodes.items() if node.stage == "grpo"},
    "grpo_deepscaler.context_phases": [
        {"steps": 2, "max_response_length": 40, "num_generations": 8},
        {"steps": 1, "max_response_length": 56, "num_generations": 16},
    ],
    "grpo_areal.context_phases": [{"steps": 2, "max_response_length": 48, "num_generations": 16}],
    **{f"{name}.suites": few_questions(name) for name, node in PIPELINE.nodes.items() if node.stage == "evaluate"},
    "scenes.scenes": 300,
    "scenes.test_questions": 30,
    "evaluate_vlm.limit": 10,
}
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
    return run(installation, WHOLE)


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
    assert set(run(installation, WHOLE).values()) == {"cached"}
    assert attempts(installation) == before


def test_a_changed_field_reruns_exactly_what_it_reaches_and_why_names_it(installation: Installation) -> None:
    changed = sets(WHOLE | CHANGED)
    assert installation.json("why", "preferences_infinity", *changed)["reason"] == "seed 11 -> 12"
    why = installation.json("why", "evaluate_dpo_infinity", *changed)
    assert [(cause["name"], cause["reason"]) for cause in why["because"]] == [("preferences_infinity", "seed 11 -> 12")]
    rows = installation.json("plan", *changed)["nodes"]
    assert {row["name"] for row in rows if row["will_run"]} == REACHED
    assert {"dpo_infinity", "evaluate_dpo_infinity", "contamination"} < REACHED
    states = run(installation, WHOLE | CHANGED)
    assert {name for name, state in states.items() if state == "done"} == REACHED
    assert {name for name, state in states.items() if state == "cached"} == set(PIPELINE.nodes) - REACHED
    assert set(run(installation, WHOLE).values()) == {"cached"}, "the earlier values are still in the ledger"
