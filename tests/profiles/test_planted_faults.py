"""Faults that are planted into `7b`, each found before anything runs, with its node, its cause and what to change.

Those that only show when something is asked or runs have their tests elsewhere: a set that is gated and a source that
is gone (tests/integration/lib/data/test_hub.py, tests/integration/stages/ingest/test_http_sources.py), a tokenizer of
another size (tests/unit/stages/tokenizer/test_run.py), a budget that is too small (tests/unit/flows/test_spending.py).
"""

from __future__ import annotations

import functools

import pytest

from flows import preflight
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
