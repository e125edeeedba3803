"""A ledger with a family, and an experiment that tuned it otherwise."""

from __future__ import annotations

from flows import experiments
from stages.core.ledger import Ledger
from stages.core.records import NodeRecord
from stages.pipeline import PIPELINE
from tests.support.family_ledger import publish_family, republish

CHANGE = "sft_tulu.learning_rate=3e-4"


def publish_experiment(ledger: Ledger) -> Ledger:
    """Profile tiny; and experiment `lr`, which shares all but the tuned model."""
    made = publish_family(ledger)
    experiments.begun(ledger, "lr", "tiny", PIPELINE, [CHANGE], "a higher rate")
    before = ledger.nodes("tiny")
    other = republish(ledger, made["sft_tulu"], "lr", stats={"steps": 3, "final_loss": 2.25})
    ledger.set_node("tiny", before["sft_tulu"])
    keys = {node: record.key for node, record in before.items()} | {"sft_tulu": other.key}
    for node, key in keys.items():
        ledger.set_node("tiny@lr", NodeRecord(node=node, key=key, run_id="run-2", at="2026-01-03"))
    return ledger
