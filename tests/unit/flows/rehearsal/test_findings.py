"""What is known before a rehearsal begins, node by node."""

from __future__ import annotations

from flows import profiles
from flows.preflight import Finding
from flows.rehearsal.derive import Machine, derive
from flows.rehearsal.findings import Findings, add_lines, node_of, reachable, sorted_out
from flows.rehearsal.report import Fault
from stages.core.preflight import Problem
from stages.pipeline import PIPELINE

NAMES = list(PIPELINE.nodes)


def test_a_launcher_that_is_away_an_image_and_an_engine_concern_every_node_that_needs_them() -> None:
    derived = derive(profiles.load("7b", PIPELINE), PIPELINE, "wiring", Machine(2, 16, 0))
    findings = [
        Finding("tokenizer", Problem("path", "/mirror/tokenizer.model", "is not there", "set it")),
        Finding("sft_tulu", Problem("image", "moxin/sft:1", "missing", "run 'moxin images build'")),
        Finding("pretrain_1", Problem("MOXIN_COLOSSALAI_PYTHON", None, "is not installed here", "install it")),
    ]
    told = sorted_out(findings, derived, PIPELINE)
    assert told.faults["tokenizer"] == [Fault(cause="path = /mirror/tokenizer.model: is not there", remedy="set it")]
    assert {"sft_tulu", "sft_infinity", "sft_reason"} <= told.faults.keys()
    assert told.out_of_reach == {"pretrain_1": "is not installed here; to reach it: install it"}
    twice = Problem("text.0", "hf://a/b", "hf://a/b: name a revision", "correct it")
    (fault,) = sorted_out([Finding("ingest_text", twice)], derived, PIPELINE).faults["ingest_text"]
    assert fault.cause == "text.0 = hf://a/b: name a revision"
    away = [Finding("collect", Problem("launcher", "slurm", "sbatch is not there", "start it"))]
    assert len(sorted_out(away, derived, PIPELINE).out_of_reach) == len(PIPELINE)


def test_lines_that_name_a_node_are_its_faults() -> None:
    told = Findings()
    lines = ["pretrain_1: 90 GiB do not fit 80 GiB", "node dpo_tulu: its inputs disagree", "no such card"]
    add_lines(told, lines, NAMES, "do something")
    assert told.faults["pretrain_1"] == [Fault(cause="90 GiB do not fit 80 GiB", remedy="do something")]
    assert "dpo_tulu" in told.faults
    assert [fault.cause for fault in told.general] == ["no such card"]
    assert node_of("7b.toml: sft_reason.max_length = 9 is odd", NAMES) == "sft_reason"


def test_what_follows_a_blocked_node_is_not_reached_and_its_siblings_are() -> None:
    chosen = PIPELINE.select("full")
    names, waits = reachable(PIPELINE, chosen, {"sft_tulu": "a fault"})
    assert waits["dpo_tulu"] == ["sft_tulu"]
    assert "grpo_areal" in waits
    assert {"sft_infinity", "vlm", "contamination"} <= set(names)
    assert len(names) + len(waits) + 1 == len(chosen)
