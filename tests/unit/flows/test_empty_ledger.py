"""A plan over the ledger in which nothing has run: every node is to run, and none has a result."""

from __future__ import annotations

import pytest

from flows import cost, profiles
from flows.empty_ledger import EmptyLedger
from flows.plan import State, make_plan
from stages.pipeline import PIPELINE


@pytest.mark.parametrize("name", ["tiny", "7b"])
def test_all_is_to_run(name: str) -> None:
    profile, ledger = profiles.load(name, PIPELINE), EmptyLedger()
    plans = make_plan(PIPELINE, profile, ledger)
    assert [plan.node.name for plan in plans if plan.will_run] == list(PIPELINE.nodes)
    assert {plan.state for plan in plans} == {State.RUN, State.PENDING}
    assert {plan.node.name for plan in plans if plan.key} >= {"collect"}
    assert cost.estimate(plans, profile, ledger).keys() == PIPELINE.nodes.keys()
