"""A node's task in the flow: what it waits for, and what a run is called that left a node without a result."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.logging import disable_run_logger

from flows import flow as flow_module
from flows.plan import NodePlan
from flows.prefect_artifacts import ApiCallQueue
from stages.core.keys import sha256
from stages.pipeline import PIPELINE
from stages.tokenizer.spec import TokenizerConfig
from tests.support.limits import HANG


class Execution:
    """Records what it is asked to run."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.said: list[str] = []
        self.events = SimpleNamespace(subscribe=lambda *a: contextlib.nullcontext(), flush=lambda: None, problems=list)
        self.ledger = self.profile = self.spending = None

    def node(self, node: Any, results: Any) -> Any:
        self.ran.append(node.name)
        return SimpleNamespace(result="result", cached=True, reason="", seconds=0.0)

    def stop(self) -> None:
        pass

    def wait_stopped(self) -> None:
        pass

    def tell(self, name: str, kind: str, **values: Any) -> None:
        self.said.append(f"{name} {values.get('state')}")


def plan_of(name: str, config: Any) -> Any:
    return SimpleNamespace(node=PIPELINE[name].under(config), resolved=None, will_run=True)


@pytest.fixture
def execution(monkeypatch: pytest.MonkeyPatch) -> Iterator[Execution]:
    monkeypatch.setattr(flow_module, "_given", lambda plans, ledger, profile: {})
    with disable_run_logger():
        yield Execution()


def run_of(execution: Execution, plans: list[NodePlan]) -> Any:
    return flow_module.Run(execution, plans, SimpleNamespace(put=lambda *a: None, close=lambda: None))  # type: ignore[arg-type]


def test_a_node_does_not_wait_for_ports_that_its_configuration_does_not_read(execution: Execution) -> None:
    """`small` and `7b` adopt a tokenizer: it was skipped for want of a corpus, and the run was called done."""
    adopts = TokenizerConfig(origin="adopt", path="/outside.json", sha256=sha256(b""))
    corpus = PIPELINE["tokenizer"].parents
    run = run_of(execution, [plan_of("tokenizer", adopts)])
    run.nodes |= {name: PIPELINE[name] for name in corpus}  # planned, and not begun
    flow_module._RUNS["test"] = run
    try:
        state = flow_module.run_node.fn("tokenizer", "test")
    finally:
        del flow_module._RUNS["test"]
    assert state.is_completed(), state.message
    assert execution.ran == ["tokenizer"]


def test_a_node_whose_parent_did_not_end_well_is_skipped_and_says_so(execution: Execution) -> None:
    run = run_of(execution, [plan_of("ingest_text", PIPELINE["ingest_text"].config_type())])
    run.nodes["collect"] = PIPELINE["collect"]
    flow_module._RUNS["test"] = run
    try:
        state = flow_module.run_node.fn("ingest_text", "test")
    finally:
        del flow_module._RUNS["test"]
    assert state.name == "Skipped"
    assert execution.said == ["ingest_text skipped"]
    assert execution.ran == []


def test_a_run_that_left_a_node_without_a_result_never_ends_well(
    execution: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(execution, [plan_of("collect", PIPELINE["collect"].config_type())])
    finished = SimpleNamespace(
        wait=lambda: None,
        add_done_callback=lambda act: act(None),
        state=SimpleNamespace(name="Completed", is_failed=bool, is_crashed=bool),
    )
    task = SimpleNamespace(with_options=lambda **options: SimpleNamespace(submit=lambda *a, **k: finished))
    monkeypatch.setattr(flow_module, "run_node", task)
    state = flow_module.walk("test", run)
    assert state.is_failed()
    assert state.message == "no result of collect: run again"


def test_an_interrupted_run_waits_for_the_picture_that_is_drawn(
    execution: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python that ends while a thread is within a library of C++ aborts: status 134 instead of 130."""
    begun, go_on, drawn = threading.Event(), threading.Event(), []

    def draw() -> None:
        begun.set()
        go_on.wait(HANG)
        drawn.append(True)

    def interrupted() -> None:
        calls.put("curves", draw)
        begun.wait(HANG)
        threading.Timer(0.3, go_on.set).start()
        raise KeyboardInterrupt

    calls = ApiCallQueue()
    monkeypatch.setattr(ApiCallQueue, "INTERRUPTED_SECONDS", HANG)
    run = flow_module.Run(execution, [plan_of("collect", PIPELINE["collect"].config_type())], calls)  # type: ignore[arg-type]
    waited = SimpleNamespace(wait=interrupted, add_done_callback=lambda act: act(None))
    task = SimpleNamespace(with_options=lambda **options: SimpleNamespace(submit=lambda *a, **k: waited))
    monkeypatch.setattr(flow_module, "run_node", task)
    assert flow_module.walk("test", run).is_cancelled()
    assert drawn == [True]
