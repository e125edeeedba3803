"""What a rehearsal takes from the rows of a training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flows.rehearsal import measures
from stages.core.ledger import Ledger
from stages.core.messages import Attempt, StageResult
from stages.core.store import Stored


def of(rows: str, config: Any = None, **attempt: Any) -> Any:
    """What was measured of an attempt with such rows of metrics."""
    spent = {"wall_seconds": 9.0, "cpu_seconds": 8.0, "peak_rss_bytes": 1, "bytes_in": 0, "bytes_out": 0}
    ran = Attempt.model_construct(resumed_from=None, **(spent | attempt))
    result = StageResult.model_construct(attempt=ran, metrics_object="rows", stats={})
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
