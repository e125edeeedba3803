"""Nodes that follow none of each other are looked up together. The rest: tests/integration/flows/test_plan.py."""

from __future__ import annotations

import threading
from pathlib import Path

from flows.empty_ledger import EmptyLedger
from flows.plan import State, make_plan
from stages.core.messages import StageResult
from tests.support.limits import HANG
from tests.support.probe_pipeline import profile_of, small_pipeline


class TogetherLedger(EmptyLedger):
    """Answers two questions at once, and none alone."""

    def __init__(self) -> None:
        self._both = threading.Barrier(2, timeout=HANG)

    def manifest(self, key: str, listed: bool = False) -> tuple[StageResult, str] | None:
        self._both.wait()
        return super().manifest(key, listed)


def test_sources_are_looked_up_together(tmp_path: Path) -> None:
    pipeline = small_pipeline()
    plans = make_plan(pipeline, profile_of(pipeline, tmp_path), TogetherLedger())
    assert [plan.node.name for plan in plans] == [node.name for node in pipeline]
    assert [plan.state for plan in plans] == [State.RUN] * 2 + [State.PENDING] * 4
