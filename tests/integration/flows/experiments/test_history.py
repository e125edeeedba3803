"""Which attempts and keys a node had, when, by whom, and whose result each is now."""

from __future__ import annotations

from typing import Any

from flows.experiments import history
from stages.core.keys import sha256
from stages.core.ledger import Ledger
from stages.core.records import AttemptRecord, NodeRecord
from tests.support.report_pages import publish

RUN = "00000000-0000-4000-8000-000000000001"


def attempt(ledger: Ledger, key: str, epoch: int, started: str, node: str = "pretrain_1", **fields: Any) -> None:
    ledger.record_attempt(
        AttemptRecord(
            key=key, epoch=epoch, node=node, launcher="process", started_at=f"2026-01-{started}T00:00:00Z",
            **({"run_id": RUN} | fields),
        )
    )  # fmt: skip


def test_every_attempt_at_every_key_of_a_node(ledger: Ledger) -> None:
    done, other = publish(ledger, "pretrain_1").key, sha256(b"other settings")
    ledger.set_node("lr1e3", NodeRecord(node="pretrain_1", key=done, run_id=RUN, at="2026-01-02T00:00:00Z"))
    attempt(ledger, other, 1, "05")
    attempt(ledger, done, 1, "02", ended_at="2026-01-03T00:00:00Z", exit_class="oom", message="out of memory")
    attempt(ledger, done, 2, "04", ended_at="2026-01-05T00:00:00Z", exit_class="ok", run_id="adopted")
    attempt(ledger, sha256(b"c"), 1, "01", node="collect")
    ledger.store.put(f"attempts/{other}/000002.json", b"{")  # damaged: 'moxin repair' names it
    ledger.store.put(ledger.log_key(other, 1), b"")

    asked: list[Any] = []

    def call(method: str, path: str, body: Any) -> Any:
        asked.append((method, path, body))
        return [{"id": RUN, "tags": ["moxin", "by:ann"]}]

    entries = history.of_node(ledger, "pretrain_1", history.starters(call))
    assert [(e.key, e.epoch, e.ended, e.by, e.names) for e in entries] == [
        (done, 1, "oom", "ann", ("lr1e3", "tiny")),
        (done, 2, "ok", "", ("lr1e3", "tiny")),
        (other, 1, "running", "ann", ()),
    ]
    assert entries[0].row()["message"] == "out of memory"
    assert asked == [("POST", "/flow_runs/filter", {"flow_runs": {"id": {"any_": [RUN]}}})]
    assert history.of_node(ledger, "pretrain_2") == []
