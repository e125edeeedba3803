"""What a rehearsal takes from the rows of a training."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from flows.rehearsal import measures
from stages.core.ledger import Ledger
from stages.core.messages import Attempt, StageResult
from stages.core.store import Stored


def of(rows: str, config: Any = None, stats: Any = None, **attempt: Any) -> Any:
    """What was measured of an attempt with such rows of metrics."""
    spent = {"wall_seconds": 9.0, "cpu_seconds": 8.0, "peak_rss_bytes": 1, "bytes_in": 0, "bytes_out": 0}
    ran = Attempt.model_construct(**({"resumed_from": None} | spent | attempt))
    result = StageResult.model_construct(attempt=ran, metrics_object="rows", stats=stats or {})
    data = rows.encode()
    store: Any = SimpleNamespace(
        list=lambda key: [Stored(key, len(data), "")], get_range=lambda key, start, end: data[start:end]
    )
    return measures.of(result, Ledger(store), config)


def test_responses_are_counted_by_their_mean_length_at_each_step() -> None:
    phases = (SimpleNamespace(steps=2, num_generations=4), SimpleNamespace(steps=1, num_generations=8))
    config = SimpleNamespace(context_phases=phases, prompts_per_step=3)
    rows = '{"step": 1, "response_length": 10}\n{"step": 3, "response_length": 40}\n'
    assert of(rows, config).response_tokens == pytest.approx((12 * 10 + 24 * 40) / 36 * 48)
    assert of('{"step": 1, "loss": 2.0}\n', config).response_tokens == 0.0


def test_an_attempt_tells_what_its_parts_took() -> None:
    task = {"seconds": 3.0, "cpu_seconds": 2.0, "documents": 4, "of": 20, "limit": 4, "answers": 8, "new_tokens": None}
    clocks = {"seconds": 5.0, "cpu_seconds": 4.0}
    stats = {
        "measuring": {**clocks, "writing": {"seconds": 1.5, "cpu_seconds": 1.0}},
        "once": {"seconds": 20.0, "cpu_seconds": 19.0},
        "parts": {"table_2/piqa": task},
    }
    one = of("", stats=stats)
    assert (one.measuring_seconds, one.writing_seconds, one.once) == ((5.0, 4.0), (1.5, 1.0), (20.0, 19.0))
    assert one.parts["table_2/piqa"].model_dump() == task
    none = of("", stats={"measuring": clocks})
    assert (none.measuring_seconds, none.writing_seconds, none.once, none.parts) == ((5.0, 4.0), None, (0.0, 0.0), {})


def steps(*seconds: float, first: int = 1) -> str:
    return "".join(
        json.dumps({"step": first + i, "step_seconds": s, "step_processor_seconds": s / 2}) + "\n"
        for i, s in enumerate(seconds)
    )


def test_the_first_half_of_an_attempts_steps_or_ten_tells_nothing_of_a_long_run() -> None:
    """Before the stop, and after it."""
    one = of(steps(9.0, 9.0, 2.0, 3.0, 8.0, 8.0, 4.0), SimpleNamespace(), resumed_from=4)
    assert one.step_seconds == (2.0, 3.0, 4.0)
    assert one.mean_step == pytest.approx((3.0, 1.5))
    long = of(steps(*[5.0] * 10, *[1.0] * 20), SimpleNamespace(), resumed_from=None)
    assert long.step_seconds == (1.0, 1.0, 1.0)
    assert of(steps(7.0), SimpleNamespace()).mean_step == pytest.approx((7.0, 3.5)), "there are no others"
    assert of("", SimpleNamespace()).mean_step is None


def test_the_mean_step_of_a_reinforcement_has_each_phase_by_its_share() -> None:
    """Two optimizer steps of each batch: those of a long phase are known, and a short one's take a third as long."""
    phases = (
        SimpleNamespace(steps=2, num_generations=2, max_response_length=10),
        SimpleNamespace(steps=2, num_generations=3, max_response_length=20),
    )
    config = SimpleNamespace(context_phases=phases, prompts_per_step=1)
    one = of(steps(5.0, 5.0, 5.0, 5.0, 6.0, 6.0, 6.0, 6.0), config)
    assert one.mean_step == pytest.approx((4.0, 2.0))
