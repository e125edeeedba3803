"""Faults that are planted into `7b`, each found before anything runs, with its node, its cause and what to change.

Those that only show when a source is asked or a node runs have their tests elsewhere: a source that is gone
(tests/integration/lib/data/test_hub.py, tests/integration/stages/ingest/test_http_sources.py), a tokenizer of another
size (tests/unit/stages/tokenizer/test_run.py), a task that the harness does not have
(tests/integration/stages/evaluate/test_run.py), and what a rehearsal says of an image without a module and of a
checkpoint of another layout (tests/integration/flows/rehearsal/test_run.py).
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from flows import preflight, profiles, spending
from stages.core.errors import ConfigError
from stages.pipeline import PIPELINE
from tests.support.profile_plans import planned, refused, warned

PLANTED = {
    "a flag that the engine does not have": (
        "sft_tulu.learning_rat=1e-5",
        ("sft_tulu.learning_rat", "no such setting", "did you mean 'learning_rate'"),
    ),
    "GPUs that the layout does not divide": (
        "resources.pretrain_1.gpus=3",
        ("pretrain_1.global_batch_size = 512", "cannot be shared evenly by 24", "change either"),
    ),
    "GPUs that the engine's batches do not divide": (
        "resources.sft_tulu.gpus=5",
        ("sft_tulu.global_batch_size = 128", "no multiple of micro_batch_size x GPUs", "change it"),
    ),
    "a suite that does not exist": (
        'evaluate_original.suites=["table_22"]',
        ("evaluate_original", "no suite 'table_22'", "did you mean 'table_2'"),
    ),
    "a task that its suite does not have": (
        'evaluate_original.suites=[{base="table_2",tasks={hellaswags={limit=3}}}]',
        ("evaluate_original.suites.0", "suite table_2 has no task hellaswags", "it has hellaswag, winogrande"),
    ),
    "local disk that is too small": (
        "resources.dedup_web.scratch_gib=10",
        ("dedup_web", "needs 1.7 TB of local disk", "resources.dedup_web.scratch_gib = 10"),
    ),
    "windows of another length than the training's": (
        "tokenize_short.sequence_length=4096",
        ("node pretrain_1", "tokenize_short has sequence_length 4096", "set pretrain_1.sequence_length = 4096"),
    ),
}


def said(override: str) -> list[str]:
    """What `moxin plan` says of `7b` with one setting changed, and does not say of it as it is."""
    try:
        lines = told("7b", override)
    except ConfigError as error:
        return [str(error)]
    return [line for line in lines if line not in told("7b")]


@functools.cache
def told(*profile: str) -> list[str]:
    """Problems, warnings and refusals of a profile with overrides."""
    values, plans, _ = planned(*profile)
    names = [plan.node.name for plan in plans if plan.will_run]
    problems = [finding.line for finding in preflight.problems(PIPELINE, values, names)]
    return [*problems, *warned(*profile), *refused(*profile)]


@pytest.mark.parametrize("fault", PLANTED)
def test_it_is_found_with_node_cause_and_remedy(fault: str) -> None:
    override, words = PLANTED[fault]
    assert [line for line in said(override) if all(word in line for word in words)], said(override)


def test_a_gated_set_is_found_where_there_is_no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    node = "instructions_infinity"
    profile = profiles.load("7b", PIPELINE, [f"launchers.{node}='process'"])
    (gated,) = {one for one in preflight.problems(PIPELINE, profile, [node]) if one.problem.key == "HF_TOKEN"}
    assert gated.node == node
    assert gated.problem.fault == "BAAI/Infinity-Instruct is gated, and there is no token"
    assert gated.problem.remedy.startswith("accept the terms on the page of BAAI/Infinity-Instruct, then set HF_TOKEN")


def test_a_budget_that_is_too_small_is_refused_with_the_dearest_node() -> None:
    profile, plans, estimates = planned("7b")
    rows = spending.costs(plans, profile, estimates)
    why = spending.refusal(rows, 1000.0)
    assert why is not None
    dearest = max(rows, key=lambda row: row.dollars or 0.0)
    assert f"above its budget of $1,000.00; most of it: {dearest.name} " in why
    assert "raise the budget, or approve the estimate" in why
    assert spending.refusal(rows, 1e9) is None
