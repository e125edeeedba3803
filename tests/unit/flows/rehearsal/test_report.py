"""What a rehearsal tells: one line, a table, a page, and where it lies in the store."""

from __future__ import annotations

from flows import profiles
from flows.rehearsal import page
from flows.rehearsal.growth import EVERYTHING
from flows.rehearsal.report import (
    Checkpointing,
    Fault,
    Forecast,
    Measured,
    NodeReport,
    RehearsalReport,
    address,
    profile_digest,
)
from stages.core.messages import StoreAddress
from stages.pipeline import PIPELINE

ONE = Measured(
    seconds=61.0,
    cpu_seconds=100.0,
    peak_memory_bytes=2**30,
    bytes_in=1000,
    bytes_out=2000,
    steps=4,
    tokens_per_second=(900.0, 1000.0, 1100.0),
    step_seconds=(1.0, 1.25, 1.5),
    loader_tokens_per_second=54321.0,
    checkpoints=Checkpointing(bytes=3 * 2**30, pause=7.0, disk=11.0, store=13.0, read_bytes=3 * 2**30, read=17.0),
)
FORECAST = Forecast(
    seconds=(3600.0, 7200.0, 14400.0),
    basis="its steps",
    pauses=29.0,
    resume=31.0,
    step=2.0,
    last_checkpoint=(1e9, 11.0, 24.0),
)
NODES = (
    NodeReport(node="pretrain_1", stage="pretrain", state="passed", resumed="stopped, and went on from step 1",
               memory_bytes=2 * 2**30, measured=ONE, stand_ins=("fp32 for fp16",), forecast=FORECAST),
    NodeReport(node="tokenizer", stage="tokenizer", state="failed", why="path is <not> there", remedy="set it",
               faults=(Fault(cause="path is <not> there", remedy="set it"),)),
    NodeReport(node="sft_tulu", stage="sft", state="out of reach", why="no GPU", asked=EVERYTHING,
               outputs={"model": {"bytes": 1.0}}),
    NodeReport(node="dpo_tulu", stage="dpo", state="not reached", why="it needs sft_tulu"),
)  # fmt: skip


def made(*nodes: NodeReport, faults: tuple[Fault, ...] = ()) -> RehearsalReport:
    return RehearsalReport(
        profile="7b", level="wiring", at="2026-01-01T00:00:00Z", profile_digest="d", code={}, nodes=nodes, faults=faults
    )


def test_its_summary_counts_and_one_fault_is_enough_to_fail() -> None:
    report = made(*NODES)
    assert report.summary() == "7b, wiring: 1 passed, 1 failed, 1 out of reach, 1 not reached"
    assert not report.ok
    assert made(NODES[0], NODES[2], NODES[3]).ok
    assert not made(NODES[0], faults=(Fault(cause="no such card"),)).ok
    assert RehearsalReport.model_validate_json(report.model_dump_json()) == report


def test_the_page_says_cause_remedy_and_what_was_measured() -> None:
    text = page.render(made(*NODES))
    for part in ("path is &lt;not&gt; there", "set it", "went on from step 1", "50.0 %", "fp32 for fp16", "no GPU",
                 "54,321", "7.0 s", "11.0 s", "13.0 s", "17.0 s", "29.0 s", "31.0 s", "37.0 s"):  # fmt: skip
        assert part in text, part
    assert "Nothing that a rehearsal can find" in page.render(made(NODES[0]))
    only_read = ONE.model_copy(update={"checkpoints": Checkpointing(read_bytes=2**30, read=17.0)})
    text = page.render(made(NODES[0].model_copy(update={"measured": only_read})))
    assert "17.0 s" in text
    assert ">0 B<" not in text, "it saved none"


def test_the_page_begins_with_the_result_and_has_no_empty_column() -> None:
    failed, passed = page.render(made(*NODES)), page.render(made(NODES[2]))
    for text, result in ((failed, "failed"), (passed, "passed")):
        assert "Rehearsal of 7b" in text
        assert f">{result}<" in text
    assert "forced stop" in failed
    assert "forced stop" not in passed
    assert "<th>log</th>" not in failed, "no log is named"


def test_its_keys_lie_apart_from_real_ones() -> None:
    assert address(StoreAddress(bucket="b", endpoint=None), "7b", "shape").prefix == "rehearsals/7b-shape/"
    assert (
        address(StoreAddress(bucket="b", endpoint=None, prefix="team/"), "7b", "wiring").prefix
        == "team/rehearsals/7b-wiring/"
    )


def test_any_setting_or_resource_makes_another_profile_of_it() -> None:
    digests = set()
    for overrides in ((), ("sft_tulu.learning_rate=1e-4",), ("resources.sft_tulu.cpus=3",)):
        profile = profiles.load("tiny", PIPELINE, overrides)
        digests.add(profile_digest(profile.configs, profile.resources))
    assert len(digests) == 3
