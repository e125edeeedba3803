"""What the nodes of a real run make, by what their rehearsals made."""

from __future__ import annotations

from typing import Any

import pytest

from flows import profiles
from flows.cost import estimate
from flows.empty_ledger import EmptyLedger
from flows.plan import make_plan
from flows.rehearsal import growth
from flows.rehearsal.derive import derive
from flows.rehearsal.report import NodeReport
from flows.scale import expected
from stages.pipeline import PIPELINE


def node(name: str = "n", **values: Any) -> NodeReport:
    return NodeReport(node=name, stage="s", state="passed", **values)


@pytest.mark.parametrize(
    ("read", "asked", "more"),
    [(100.0, 0.0, 3.0), (100.0, 2.0, 2.0), (100.0, growth.EVERYTHING, 3.0), (0.0, 0.0, 0.0)],
    ids=["by what it reads", "as much as is asked for", "everything is asked for", "not known"],
)
def test_outputs_grow_with_inputs_up_to_what_settings_ask_for(read: float, asked: float, more: float) -> None:
    inputs = {"documents": [expected({"bytes": 200.0}), expected({"bytes": 100.0})]}
    one = node(read_bytes=read, asked=asked, outputs={"documents": {"bytes": 10.0, "rows": 4.0}})
    made = growth.outputs(one, inputs)
    assert made == ({"documents": {"bytes": 10 * more, "rows": 4 * more}} if more else {})
    assert growth.outputs(one, {"documents": [expected({})]}) == {}
    assert growth.outputs(one.model_copy(update={"unlike": True}), inputs) == {}


def test_of_a_node_that_reads_nothing_its_settings_alone_tell() -> None:
    assert growth.growth(node(asked=5.0), {}) == 5
    assert growth.growth(node(), {}) == 1


def test_what_settings_ask_for_is_seen_in_the_profile() -> None:
    profile = profiles.load("tiny", PIPELINE)
    small = derive(profile, PIPELINE, "shape").profile
    asked = {name: growth.asked_more(config, small.configs[name]) for name, config in profile.configs.items()}
    config: Any = profile.configs["instructions_tulu"]
    assert asked["instructions_tulu"] == config.rows / 400
    assert asked["collect"] == 0, "as much is gathered"
    assert asked["ingest_text"] == growth.EVERYTHING, "all documents instead of some"


def test_a_chain_is_reckoned_from_its_first_node() -> None:
    profile = profiles.load("tiny", PIPELINE)
    plans = make_plan(PIPELINE, profile, EmptyLedger())
    raw = {"bytes": 5e6, "source_bytes": 5e6, "documents": 100.0, "text_bytes": 5e6}
    reports = {
        "collect": node("collect", outputs={"text": raw, "web": raw, "code": raw}),
        "ingest_text": node("ingest_text", read_bytes=5e6, outputs={"documents": raw}),
        "instructions_tulu": node(
            "instructions_tulu", read_bytes=2.5e6, asked=5.0, outputs={"train": {"bytes": 1e5, "rows": 300.0}}
        ),
    }
    known = estimate(plans, profile, None, grown=lambda name, inputs: growth.outputs(reports.get(name), inputs))
    assert known["sft_tulu"].rows == 600, "twice as much is read, and five times as many rows are asked for"
    assert estimate(plans, profile, None)["sft_tulu"].rows == 0
