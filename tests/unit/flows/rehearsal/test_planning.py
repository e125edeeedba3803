"""What a plan takes from rehearsals: hours by what was measured, and a word where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flows import cost, profiles
from flows.cost import Estimate
from flows.empty_ledger import EmptyLedger
from flows.plan import make_plan
from flows.rehearsal import planning
from flows.rehearsal.derive import derive
from flows.rehearsal.forecast import (
    CORE_SECONDS,
    OFF,
    RESPONSES,
    TASKS,
    forecast,
    of_rehearsal,
    units,
    units_of_inputs,
)
from flows.rehearsal.report import Checkpointing, Measured, NodeReport, RehearsalReport, TaskTime, profile_digest
from flows.scale import ROWS_ALONE, NodeScale
from stages.core.keys import source_digest
from stages.core.resources import Resources
from stages.core.shrinking import Level
from stages.pipeline import PIPELINE

PRICES: dict[str, Any] = {"gpu": {"dollars_per_hour": 2.0}, "cpu": {"dollars_per_core_hour": 0.05}}


def node(
    units: float,
    seconds: float,
    unit: str = "FLOPs",
    steps: Any = None,
    ranks: int = 1,
    unlike: bool = False,
    **more: Any,
) -> NodeReport:
    """Of five steps, with the seconds of a step (least, middle, most); what else was measured in `more`."""
    measured = Measured(
        seconds=seconds,
        cpu_seconds=seconds,
        peak_memory_bytes=1,
        bytes_in=0,
        bytes_out=0,
        steps=5 if steps else 0,
        steps_here=5,
        step_seconds=steps,
    ).model_copy(update=more)
    return NodeReport(
        node="n", stage="s", state="passed", measured=measured, unit=unit, units=units, ranks=ranks, unlike=unlike
    )


class Config(SimpleNamespace):
    """Of a pre-training: 720 steps of 1,000 tokens."""

    tokens, steps, global_batch_size, sequence_length, checkpoint_every = 720_000, 720, 10, 100, 100


def interval(least: float, likely: float, most: float) -> Any:
    """Wider at both ends by as much as forecasts are off."""
    return pytest.approx((least * (1 - OFF), likely, most * (1 + OFF)))


def told(config: Any, estimate: Estimate, shape: Any, wiring: Any = None, **resources: Any) -> Any:
    return forecast(config, Resources(**resources), estimate, PRICES, shape, wiring)


def test_a_training_goes_by_its_own_steps_and_the_processes_that_it_will_have() -> None:
    one = told(Config(), Estimate(), node(5_000, 15.0, "tokens", (0.8, 1.0, 1.25)), gpus=4, nodes=2)
    assert one.seconds == interval(10 + 72, 10 + 90, 10 + 112.5)
    assert one.gpu_hours == pytest.approx(100 / 3600 * 8)
    assert one.dollars[1] == pytest.approx(2 * one.gpu_hours)


def test_the_mean_of_its_steps_is_likely_and_the_fastest_and_slowest_bound_it() -> None:
    shape = node(5_000, 15.0, "tokens", (0.5, 1.0, 4.0), mean_step=(1.5, 3.0), steps_here=2)
    one = told(Config(), Estimate(), shape)
    assert one.seconds == interval(12 + 720 * 0.5, 12 + 720 * 1.5, 12 + 720 * 4)
    assert one.core_hours * 3600 == pytest.approx(15 - 6 + 720 * 3)


def test_checkpoints_cost_pauses_and_tell_how_long_stopping_and_going_on_take() -> None:
    kept = Checkpointing(bytes=1e9, pause=2.0, disk=6.0, store=4.0, read_bytes=1e9, read=8.0)
    shape = node(5_000, 15.0, "tokens", (1.0, 1.0, 1.0), ranks=2, checkpoints=kept, steps_here=2)
    one = told(Config(), Estimate(), shape, gpus=2, nodes=2)
    assert one.pauses == pytest.approx(7 * 2.0 / 2)
    assert one.seconds[1] == pytest.approx(5 + 360 + 7.0), "15 s less two steps and reading"
    assert one.resume == pytest.approx(5 + 8 / 2)
    assert one.last_checkpoint == pytest.approx((1e9, 3.0, 2.0)), "a half of it on each machine"
    assert one.stop == pytest.approx(0.5 + 5.0)


def test_what_measures_the_model_grows_and_the_start_does_not() -> None:
    config = SimpleNamespace(global_batch_size=8, epochs=2, max_rows=None, checkpoint_every=1000)
    shape = node(40, 25.0, "rows", (1.0, 1.0, 1.0), measuring=10.0, step_processor_seconds=2.0)
    wiring = node(40, 13.0, "rows", (1.0, 1.0, 1.0), step_processor_seconds=1.0)
    one = told(config, Estimate(rows=400, measuring=(30.0, 0.0)), shape, wiring)
    assert one.seconds == interval(20 + 100, 8 + 12 * 3 + 100, 20 * 3 + 100)
    assert one.core_hours * 3600 == pytest.approx(8 + (15 - 8) * 3 + 200)


def test_responses_are_half_of_the_longest_and_the_longest_at_most() -> None:
    """The rehearsal's were counted: its steps took so long for what it wrote."""
    phase = SimpleNamespace(steps=100, num_generations=4, max_response_length=50)
    config = SimpleNamespace(context_phases=(phase,), prompts_per_step=2, checkpoint_every=1000, engine="verl")
    written, small = 5 * 8 * 50.0, node(1, 1).measured
    assert small is not None
    shape = node(written, 15.0, RESPONSES, (0.8, 1.0, 1.25))
    assert told(config, Estimate(), shape).seconds == interval(10 + 40, 10 + 50, 10 + 125)
    assert of_rehearsal(config, RESPONSES, 1000.0, small) == 2000.0, "nobody counted: none ends early"
    assert of_rehearsal(config, RESPONSES, 1000.0, small.model_copy(update={"response_tokens": 1300.0})) == 1300.0
    batches = SimpleNamespace(**{**vars(config), "engine": "trl"})
    assert told(batches, Estimate(), shape).seconds == interval(10 + 80, 10 + 100, 10 + 125)
    assert of_rehearsal(batches, RESPONSES, 1000.0, small.model_copy(update={"response_tokens": 1.0})) == 1000.0


def test_what_measures_a_model_grows_by_the_time_that_it_told() -> None:
    """The start of a node, and its own steps, do not. What it reads and what it writes grow by their own operations."""
    training = SimpleNamespace(global_batch_size=8, epochs=2, max_rows=None, checkpoint_every=1000)
    shape = node(40, 25.0, "rows", (1.0, 1.0, 1.0), measuring=10.0, measuring_seconds=(4.0, 3.0))
    assert told(training, Estimate(rows=400, measuring=(30.0, 0)), shape).seconds[1] == pytest.approx(20 + 4 * 2 + 100)
    assert shape.measured is not None
    both = {"measuring": 10.0, "measuring_written": 6.0, "measuring_seconds": (4.0, 3.0), "writing_seconds": (1.0, 0.5)}
    apart = shape.model_copy(update={"measured": shape.measured.model_copy(update=both)})
    one = told(training, Estimate(rows=400, measuring=(8.0, 60.0)), apart)
    assert one.seconds[1] == pytest.approx(20 + 3 * 1 + 1 * 9 + 100)
    unread = apart.model_copy(update={"measured": shape.measured.model_copy(update=both | {"measuring_written": 10.0})})
    one = told(training, Estimate(rows=400, measuring=(0.0, 100.0)), unread)
    assert one.seconds[1] == pytest.approx(20 + 1 * 9 + 100), "answers are checked beside, once as long"


def test_an_evaluation_goes_by_each_of_its_tasks() -> None:
    task = SimpleNamespace(task="t", limit=100, repeats=1, max_new_tokens=None)
    config = SimpleNamespace(suites=(SimpleNamespace(name="s", tasks=(task,)),), batch_size=16)
    took = TaskTime(seconds=6.0, cpu_seconds=4.0, documents=20, of=20, limit=20, answers=0, new_tokens=None)
    one = told(config, Estimate(questions=100), node(1, 25.0, TASKS, parts={"s/t": took}))
    assert one.seconds == interval(*(19 + 6 * 5,) * 3)
    assert one.core_hours * 3600 == pytest.approx(21 + 4 * 5)
    assert told(config, Estimate(questions=100), node(1, 25.0, TASKS), node(1, 20.0, TASKS)) is None


def test_two_rehearsals_tell_the_fixed_part_from_what_grows() -> None:
    one = told(None, Estimate(flops=1000.0), node(110, 20.0), node(10, 10.0))
    assert one.seconds == interval(20.0, 109.0, 20 * 1000 / 110)
    assert told(None, Estimate(flops=1000.0), node(110, 20.0)) is None
    compiled = node(10, 35.0, once=(25.0, 24.0))
    again = told(None, Estimate(flops=1000.0), node(110, 20.0), compiled)
    assert again.seconds == one.seconds, "kernels that the first rehearsal compiled are there"


def test_a_node_without_inputs_goes_by_what_its_settings_ask_for() -> None:
    """Of each that is there in `tiny` by the profile's own rehearsals; of sources that are listed, by their number."""
    profile = profiles.load("tiny", PIPELINE)
    plans = make_plan(PIPELINE, profile, EmptyLedger())
    estimates = cost.estimate(plans, profile, None)
    reports: dict[Any, RehearsalReport] = {}
    for level, pace in (("wiring", 1.0), ("shape", 2.0)):
        derived = derive(profile, PIPELINE, cast("Level", level)).profile
        nodes = [
            node(count, 10.0 + pace, unit).model_copy(update={"node": one.name})
            for one in PIPELINE
            if not one.wires
            for unit, count, _ in [units_of_inputs(one, derived.configs[one.name], derived.resources[one.name], {})]
        ]
        reports[level] = RehearsalReport(
            profile="tiny", level=cast("Level", level), at="2026-01-02", profile_digest="", code={}, nodes=tuple(nodes)
        )
    forecasts = planning.forecasts(plans, profile, reports)
    asked = {name: units(profile.configs[name], estimates[name]) for name in forecasts}
    assert {one.name for one in PIPELINE if not one.wires} == set(forecasts)
    scenes: Any = profile.configs["scenes"]
    assert asked["scenes"] == (
        "that its settings ask for",
        scenes.scenes + scenes.test_scenes + scenes.test_questions,
    )
    assert forecasts["collect"].seconds == interval(12.0, 12.0, 12.0), "as much as the larger one gathers"
    least, likely, most = forecasts["scenes"].seconds
    assert least == pytest.approx(12.0 * (1 - OFF))
    assert 12.0 < likely < most / (1 + OFF), "beside what forecasts are off, too"
    listing: Any = profiles.load("7b", PIPELINE).configs["collect"]
    assert units(listing, Estimate(scale=NodeScale())) == (
        "sources",
        len(listing.text) + len(listing.web) + len(listing.code),
    )
    count = len(listing.text) + len(listing.web) + len(listing.code)
    same = told(listing, Estimate(scale=NodeScale()), node(count, 12.0, "sources"), node(count, 10.0, "sources"))
    assert same.seconds == interval(10.0, 12.0, 12.0)


def test_nothing_is_forecast_of_a_stand_in_of_other_work_or_of_none() -> None:
    small, flops = node(10, 10.0), Estimate(flops=1000.0)
    assert told(None, flops, node(110, 20.0, unlike=True), small) is None
    assert told(Config(), flops, node(110, 20.0), small) is None
    assert told(None, Estimate(), node(110, 20.0), small) is None


def test_a_plan_says_what_was_measured_and_what_is_missing_or_old() -> None:
    profile = profiles.load("7b", PIPELINE)
    plans = make_plan(PIPELINE, profile, EmptyLedger())
    estimates = cost.estimate(plans, profile, None)
    (line,) = planning.warnings(plans, profile, estimates, {})
    assert "moxin rehearse --profile 7b" in line
    config: Any = profile.configs["pretrain_1"]
    window = config.global_batch_size * config.sequence_length
    passed = node(5 * window, 60.0, "tokens", (window / 1e6,) * 3, ranks=16).model_copy(update={"node": "pretrain_1"})
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


@pytest.mark.slow  # imports Prefect
def test_a_budget_goes_by_what_the_plan_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from flows import flow

    profile = profiles.load("7b", PIPELINE)
    plans = make_plan(PIPELINE, profile, EmptyLedger())
    shape = node(1e6, 60.0, "tokens", (0.2, 0.2, 0.2), ranks=16).model_copy(update={"node": "pretrain_1"})
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


def test_what_a_node_of_others_results_does_is_counted_in_bytes_and_what_it_makes_by_its_settings() -> None:
    """Whether its rows are known already, or not; of a hub, what it reads of nodes beside tells nothing."""
    read = NodeScale(bytes_in=700.0)
    assert units(SimpleNamespace(), Estimate(scale=read)) == ("bytes read", 700.0)
    assert units(SimpleNamespace(origin="train"), Estimate(scale=replace(read, unknown="rows"))) == ("bytes read", 700)
    assert units(SimpleNamespace(), Estimate(scale=replace(read, unmeasured="model"))) == ("", 0.0)
    made: Any = profiles.load("tiny", PIPELINE).configs["instructions_tulu"]
    rows = replace(read, core_seconds=3.0, rates=ROWS_ALONE)
    assert units(made, Estimate(scale=read)) == units(made, Estimate(scale=rows))
    assert units(made, Estimate(scale=read)) == ("that its settings ask for", made.rows)
    assert units(SimpleNamespace(origin="hub"), Estimate(scale=rows)) == ("", 0.0)
    assert units(SimpleNamespace(origin="hub"), Estimate(scale=replace(rows, rates=("dedup.near",)))) == (
        CORE_SECONDS, 3.0
    )  # fmt: skip
