"""A ledger with a small family: raw text, a corpus, two models and an evaluation, with invented numbers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from safetensors.numpy import save

from stages.core.artifacts import ArtifactManifest, FileEntry
from stages.core.keys import artifact_digest, sha256
from stages.core.ledger import Ledger
from stages.core.messages import InputRef, StageResult
from stages.core.records import NodeRecord
from tests.support.evaluation_reports import score, toy
from tests.support.report_pages import publish

CONFIG = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
TENSORS = {
    "model.embed_tokens.weight": np.arange(64, dtype=np.float32).reshape(16, 4),
    "model.layers.0.input_layernorm.weight": np.ones(4, np.float32),
    "lm_head.weight": -np.arange(64, dtype=np.float32).reshape(16, 4),
}


def artifact(
    ledger: Ledger,
    node: str,
    port: str,
    type: str,
    files: dict[str, bytes],
    facets: dict[str, str | int] | None = None,
    **meta: Any,
) -> ArtifactManifest:
    """An artifact with its objects in the store."""
    entries = []
    for path, data in files.items():
        key = f"objects/x/{sha256(node.encode())}/000001/{port}/{path}"
        ledger.store.put(key, data)
        entries.append(FileEntry(path=path, size=len(data), sha256=sha256(data), object=key))
    digest = artifact_digest(type, facets or {}, entries)
    return ArtifactManifest(type=type, digest=digest, facets=facets or {}, meta=meta, files=tuple(entries))


def ref(result: StageResult, port: str) -> InputRef:
    """What a child says of a parent's output."""
    return InputRef(node=result.node, key=result.key, port=port, manifest=result.outputs[port])


def republish(ledger: Ledger, result: StageResult, key: str, **changes: Any) -> StageResult:
    """Another result of a node, with another key, as the newest of it."""
    other = result.model_copy(update={"key": sha256(key.encode()), **changes})
    ledger.store.put(f"manifests/{other.key}.json", other.model_dump_json().encode())
    ledger.set_node("tiny", NodeRecord(node=other.node, key=other.key, run_id="run-2", at="2026-01-03T00:00:00+00:00"))
    return other


def model_files(**more: bytes) -> dict[str, bytes]:
    """A model's folder."""
    texts = {
        "config.json": json.dumps(CONFIG).encode(),
        "generation_config.json": b"{}",
        "tokenizer.json": b"{}",
        "README.md": b"the stage's own card",
    }
    return texts | {"model.safetensors": save(TENSORS)} | more


def publish_family(ledger: Ledger, toys: bool = True) -> dict[str, StageResult]:
    """Results of collect, ingest_text, dedup_text, tokenizer, pretrain_2, evaluate_original, instructions_tulu and
    sft_tulu, by node. toys: whether what is evaluated on was made by the run.
    """
    made: dict[str, StageResult] = {}
    raw = artifact(ledger, "collect", "text", "RawFiles", {"listing.jsonl": b"{}"})
    made["collect"] = publish(ledger, "collect", config={"origin": "machine"}, outputs={"text": raw})
    documents = artifact(
        ledger, "ingest_text", "documents", "Documents", {"part-00000.parquet": b"rows"}, documents=90, text_bytes=9000,
        per_license={"": 10, "MIT": 50, "Apache-2.0": 30},
    )  # fmt: skip
    made["ingest_text"] = publish(
        ledger, "ingest_text", inputs={"raw": (ref(made["collect"], "text"),)}, outputs={"documents": documents},
        stats={
            "records": 100, "per_source": {"prose": 90}, "skipped": {"not text": 4}, "languages": {"en": 80, "fr": 2},
            "dropped": {"too short": {"documents": 6, "bytes": 60}},
        },
    )  # fmt: skip
    kept = artifact(
        ledger, "dedup_text", "documents", "Documents", {"part-00000.parquet": b"fewer"}, documents=70, text_bytes=7000
    )
    made["dedup_text"] = publish(
        ledger, "dedup_text", inputs={"sources": (ref(made["ingest_text"], "documents"),)},
        outputs={"documents": kept}, stats={
            "funnel": {
                "in": {"documents": 90, "bytes": 9000}, "out": {"documents": 70, "bytes": 7000},
                "near duplicate": {"documents": 20, "bytes": 1900},
                "paragraphs seen before": {"documents": 33, "bytes": 100},
            }
        },
    )  # fmt: skip
    tokens = artifact(ledger, "tokenizer", "tokenizer", "Tokenizer", {"tokenizer.json": b"{}"})
    made["tokenizer"] = publish(
        ledger, "tokenizer", inputs={"documents": (ref(made["dedup_text"], "documents"),)},
        outputs={"tokenizer": tokens},
    )  # fmt: skip
    weights = artifact(
        ledger, "pretrain_2", "model", "Model", model_files(), {"context_length": 64, "vocab_size": 16}, parameters=132
    )
    made["pretrain_2"] = publish(
        ledger, "pretrain_2", outputs={"model": weights}, config={"steps": 7, "learning_rate": 1e-3},
        inputs={"tokenizer": (ref(made["tokenizer"], "tokenizer"),)}, stats={"final_loss": 3.25, "steps": 7},
    )  # fmt: skip
    made["evaluate_original"] = publish_scores(ledger, made["pretrain_2"], toys)
    pairs = artifact(
        ledger, "instructions_tulu", "train", "Conversations", {"part-00000.parquet": b"turns"}, rows=40,
        per_source={"owner/chats": 40}, per_license={"ODC-BY-1.0": 40},
    )  # fmt: skip
    made["instructions_tulu"] = publish(
        ledger, "instructions_tulu", outputs={"train": pairs}, stats={"rows": 45, "removed": {"duplicate": 5}},
        config={"origin": "hub", "sources": [{"data_set": "owner/chats", "revision": "a" * 40}]},
    )  # fmt: skip
    tuned = artifact(
        ledger, "sft_tulu", "model", "Model", model_files(**{"chat_template.jinja": b"{{ messages }}"}), parameters=132
    )
    made["sft_tulu"] = publish(
        ledger, "sft_tulu", outputs={"model": tuned}, stats={"steps": 3, "final_loss": 2.5},
        inputs={
            "parent": (ref(made["pretrain_2"], "model"),),
            "conversations": (ref(made["instructions_tulu"], "train"),),
        },
    )  # fmt: skip
    return made


def publish_scores(ledger: Ledger, model: StageResult, toys: bool, digest: str | None = None) -> StageResult:
    """The evaluation of a model on PIQA: made questions, or the benchmark's own."""
    from stages.lib.formats.reports import EvaluatedModel, Harness, Report

    make = toy if toys else score
    report = Report(
        model=EvaluatedModel(
            node=model.node, digest=digest or model.outputs["model"].digest, parameters=132, dtype="float32",
            trained_on=(),
        ),
        harness=Harness(name="lm-evaluation-harness", version="0.4.13"), seed=1234, aggregates=(),
        results=(
            make("table_2", "PIQA", 0.625, data_set="baber/piqa"),
            make("table_2", "PIQA", 0.6, data_set="baber/piqa", metric="acc_norm", headline=False),
        ),
    )  # fmt: skip
    files = {"report.json": report.model_dump_json().encode()}
    found = artifact(ledger, "evaluate_original", "report", "EvalReport", files)
    sets = [{"id": "baber/piqa", "origin": "machine", "license": "MIT", "rows": {"default": {"validation": 100}}}]
    listing = {"suite.json": json.dumps({"data_sets": sets}).encode()}
    suite = publish(
        ledger, "capability", outputs={"suite": artifact(ledger, "capability", "suite", "EvalSuite", listing)}
    )
    return publish(
        ledger,
        "evaluate_original",
        inputs={"model": (ref(model, "model"),), "suite": (ref(suite, "suite"),)},
        outputs={"report": found},
    )
