"""What a plan takes from rehearsals: hours by what was measured, and a word where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from flows import cost, flow, profiles
from flows.empty_ledger import EmptyLedger
from flows.plan import make_plan
from flows.rehearsal import planning
from flows.rehearsal.forecast import forecast
from flows.rehearsal.report import Measured, NodeReport, RehearsalReport, profile_digest
from stages.core.keys import source_digest
from stages.core.resources import Resources
from stages.pipeline import PIPELINE

PRICES: dict[str, Any] = {"gpu": {"dollars_per_hour": 2.0}, "cpu": {"dollars_per_core_hour": 0.05}}


def node(
    units: float, seconds: float, unit: str = "FLOPs", rates: Any = None, ranks: int = 1, unlike: bool = False
) -> NodeReport:
    measured = Measured(
        seconds=seconds, cpu_seconds=seconds, peak_memory_bytes=1, bytes_in=0, bytes_out=0, tokens_per_second=rates
    )
    return NodeReport(
        node="n", stage="s", state="passed", measured=measured, unit=unit, units=units, ranks=ranks, unlike=unlike
    )


def test_a_training_goes_by_its_own_rate_and_the_processes_that_it_will_have() -> None:
    shape = node(2_000, 30.0, "tokens", (80.0, 100.0, 125.0))
    one = forecast(("tokens", 720_000.0), Resources(gpus=4, nodes=2), PRICES, shape, None)
    assert one is not None
    assert one.seconds == pytest.approx((10 + 720, 10 + 900, 10 + 1125))
    assert one.gpu_hours == pytest.approx(910 / 3600 * 8)
    assert one.dollars[1] == pytest.approx(2 * one.gpu_hours)


def test_two_rehearsals_tell_the_fixed_part_from_what_grows() -> None:
    one = forecast(("FLOPs", 1000.0), Resources(), PRICES, node(110, 20.0), node(10, 10.0))
    assert one is not None
    assert one.seconds == pytest.approx((109.0, 109.0, 20 * 1000 / 110))
    assert forecast(("FLOPs", 1000.0), Resources(), PRICES, node(110, 20.0), None) is None


def test_nothing_is_forecast_of_a_stand_in_of_other_work_or_of_none() -> None:
    small = node(10, 10.0)
    assert forecast(("FLOPs", 1000.0), Resources(), PRICES, node(110, 20.0, unlike=True), small) is None
    assert forecast(("tokens", 1000.0), Resources(), PRICES, node(110, 20.0), small) is None
    assert forecast(("", 0.0), Resources(), PRICES, node(110, 20.0), small) is None


def test_a_plan_says_what_was_measured_and_what_is_missing_or_old() -> None:
    profile = profiles.load("7b", PIPELINE)
    plans = make_plan(PIPELINE, profile, EmptyLedger())
    estimates = cost.estimate(plans, profile, None)
    (line,) = planning.warnings(plans, profile, estimates, {})
    assert "moxin rehearse --profile 7b" in line
    config: Any = profile.configs["pretrain_1"]
    window = config.global_batch_size * config.sequence_length
    passed = node(5 * window, 60.0, "tokens", (1e6, 1e6, 1e6), ranks=16).model_copy(update={"node": "pretrain_1"})
    code = {plan.node.stage: source_digest(plan.node.stage) for plan in plans}
    digest = profile_digest(profile.configs, profile.resources)
    report = RehearsalReport(
        profile="7b", level="shape", at="2026-01-02", profile_digest=digest, code=code, nodes=(passed,)
    )
    assert planning.warnings(plans, profile, estimates, {"shape": report}) == []
    better = planning.measured(plans, profile, estimates, {"shape": report})
    assert list(better) == ["pretrain_1"]
    assert better["pretrain_1"].seconds == pytest.approx(config.steps * window / 4e6, rel=0.01)
    assert better["pretrain_1"].basis == "rehearsal of 2026-01-02"
    old = report.model_copy(update={"code": code | {"sft": "0"}, "profile_digest": "0"})
    lines = planning.warnings(plans, profile, estimates, {"shape": old})
    assert "other settings" in lines[0]
    assert "other code: sft" in lines[1]


def test_a_plan_that_costs_nothing_is_not_told_to_be_rehearsed() -> None:
    profile = profiles.load("tiny", PIPELINE)
    plans = make_plan(PIPELINE, profile, EmptyLedger())
    assert planning.warnings(plans, profile, cost.estimate(plans, profile, None), {}) == []


def test_a_budget_goes_by_what_the_plan_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    profile = profiles.load("7b", PIPELINE)
    plans = make_plan(PIPELINE, profile, EmptyLedger())
    shape = node(1e6, 60.0, "tokens", (1e6, 1e6, 1e6), ranks=16).model_copy(update={"node": "pretrain_1"})
    one = RehearsalReport(profile="7b", level="shape", at="2026-01-02", profile_digest="", code={}, nodes=(shape,))
    monkeypatch.setattr(planning.report, "read_all", lambda store, name: {"shape": one})
    shown = cost.estimate(plans, profile, None)
    computed = shown["pretrain_1"].dollars
    planning.take(plans, profile, shown, cast(Any, object()))
    ledger: Any = EmptyLedger()
    ledger.store = None
    spent = flow.spending_of(plans, profile, ledger, 1.0, True, tmp_path, ())
    row = next(row for row in spent.rows if row.name == "pretrain_1")
    assert (row.dollars, row.basis) == (shown["pretrain_1"].dollars, "rehearsal of 2026-01-02")
    assert row.dollars != pytest.approx(computed)
