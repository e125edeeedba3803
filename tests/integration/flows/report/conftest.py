"""What the tests of the report share: a ledger with training, deduplication and both evaluations of the ablation."""

from __future__ import annotations

import pytest

from stages.core.ledger import Ledger
from stages.core.messages import InputRef
from tests.support.report_pages import publish
from tests.support.report_results import evaluation, manifest, publish_report, score


@pytest.fixture
def trained(ledger: Ledger) -> Ledger:
    """Three phases of training, deduplication, and both evaluations."""
    parent: dict[str, tuple[InputRef, ...]] = {}
    for number in (1, 2, 3):
        name, model = f"pretrain_{number}", manifest("Model", number=number)
        rows = [
            {"step": s, "tokens": 100 * s, "loss": 9.0 - number - s / 10, "learning_rate": 1e-3} for s in range(1, 11)
        ]
        rows[-1]["val_loss"] = 5.4321
        stats = {
            "parameters": 1234567,
            "steps": 10,
            "tokens": 1000,
            "epochs": 0.5,
            "final_loss": 6.789,
            "val_loss": 5.4321,
            "skipped_steps": 0,
            "tokens_per_second": 4321,
            "tflops_per_second": 0.25,
            "device": "cpu",
        }
        done = publish(
            ledger,
            name,
            stats=stats,
            config={"sequence_length": 128, "learning_rate": 1e-3},
            outputs={"model": model},
            inputs=parent,
            metrics=rows,
        )
        parent = {"parent": (InputRef(node=name, key=done.key, port="model", manifest=model),)}
    funnel = {
        "in": {"documents": 1000, "bytes": 80_000},
        "out": {"documents": 777, "bytes": 60_000},
        "near duplicate": {"documents": 223, "bytes": 20_000},
    }
    publish(
        ledger,
        "dedup_text",
        stats={
            "recipe": "slimpajama",
            "funnel": funnel,
            "documents": 777,
            "text_bytes": 60_000,
            "clusters": 3,
            "cluster_sizes": {"2": 3},
            "example_clusters": [["doc-a", "doc-b"]],
            "lengths": [{"from": 64, "documents": 776}, {"from": 128, "documents": 1}],
        },
    )
    publish(
        ledger,
        "ingest_web",
        stats={
            "records": 40,
            "documents": 30,
            "text_bytes": 9000,
            "skipped": {"not HTML": 4},
            "dropped": {"too few stop words": {"documents": 6, "bytes": 12_000}},
            "languages": {"en": 3, "fr": 1},
            "lengths": [{"from": 256, "documents": 36}],
        },
    )
    publish(
        ledger,
        "tokenizer",
        stats={"vocab_size": 999, "origin": "train", "bytes_per_token": 4.0, "sampled_documents": 10},
    )
    publish(
        ledger,
        "tokenize_short",
        stats={
            "windows": 7,
            "heldout_windows": 1,
            "tokens": 896,
            "sources": [{"node": "dedup_text", "documents": 770, "tokens": 896, "epochs": 0.9}],
            "funnel": {
                "in": {"documents": 777, "bytes": 60_000, "tokens": 1234},
                "held out": {"documents": 7, "bytes": 500, "tokens": 234},
                "cut by the mixture": {"tokens": 104},
            },
        },
    )
    publish_report(
        ledger,
        "evaluate_original",
        evaluation(
            "pretrain_2", score("hellaswag", 0.25, 0.03), score("piqa", 0.50, 0.05), score("arc_easy", 0.5, None)
        ),
    )
    better = score("hellaswag", 0.40, 0.04, in_domain=True, comparable_to_paper=False, note="60 of 200 documents")
    publish_report(
        ledger,
        "evaluate_enhanced",
        evaluation(
            "pretrain_3", better, score("piqa", 0.55, 0.05), score("arc_easy", 0.75, None), trained_on=("hellaswag",)
        ),
    )
    return ledger
