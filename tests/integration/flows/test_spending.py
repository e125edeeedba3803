"""A budget in an execution: no attempt begins above it, what ran is counted, and a run that is approved goes on."""

from __future__ import annotations

import pytest

from flows.execute import Execution
from flows.spending import NodeCost, OverBudget, Spending
from stages.core.errors import Preempted
from stages.core.resources import Resources
from tests.support.bench import PIPE, SOURCE, Bench, failing, recorder, started
from tests.support.probe_pipeline import run_nodes

PRICES = {"gpu": {"dollars_per_hour": 2.0}, "cpu": {"dollars_per_core_hour": 3600.0}}
ROWS = [NodeCost(name, 1.0, basis="bytes", resources=Resources(cpus=1e6)) for name in PIPE.nodes]


def with_budget(run: Execution, dollars: float, approved: bool = False) -> Spending:
    run.spending = Spending(ROWS, PRICES, dollars, approved)
    return run.spending


def test_a_failed_attempt_is_paid_for_and_has_no_second_when_the_budget_is_used_up(bench: Bench) -> None:
    """A million cores at a dollar a second each."""
    run = bench.begin("retries=3", before=failing(Preempted("lost")))
    spent = with_budget(run, 10.0)
    with pytest.raises(
        OverBudget, match=r"of \$10.00 are spent, and 6 nodes \(source_a, source_b, vocabulary, shards and"
    ):
        run.node(SOURCE, {})
    assert started(run) == ["source_a"]
    assert spent.spent > 10.0
    assert recorder(run).states("source_a") == ["running", "stopped"]
    with pytest.raises(OverBudget):
        run.node(PIPE["source_b"], {})
    assert started(run) == ["source_a"]
    again = bench.begin()
    assert with_budget(again, 10.0, approved=True).spent == 0.0, "the next run counts anew"
    run_nodes(again, PIPE)
    assert started(again) == list(PIPE.nodes)
    assert again.spending is not None
    assert again.spending.rest == 0.0


def test_what_the_ledger_answers_costs_nothing(finished: Bench) -> None:
    run = finished.begin()
    spent = with_budget(run, 0.01)
    run_nodes(run, PIPE)
    assert (started(run), spent.spent, spent.rest) == ([], 0.0, 0.0)
