"""Sources and licences of the data, and what each stage cost, on the report's page."""

from __future__ import annotations

from dataclasses import replace

from flows import profiles, report
from flows.report import licenses, provenance
from stages.core.ledger import Ledger
from stages.core.resources import Resources
from stages.pipeline import PIPELINE
from tests.support.report_pages import HOSTILE, Page, publish
from tests.support.report_results import manifest


def test_sources_and_licences_are_counted_as_the_stage_did(ledger: Ledger) -> None:
    counts = {f"s{n}": n for n in range(1, 9)}
    meta = {"documents": 36, "per_source": counts, "per_license": {"MIT": 30, "": 5, HOSTILE: 1}}
    publish(ledger, "ingest_text", outputs={"documents": manifest("Documents", **meta)})
    publish(ledger, "pretrain_1", outputs={"model": manifest("Model")})
    section = licenses.section(report.collect(ledger, "tiny"))
    assert section is not None
    page = Page(str(section.body))
    text = " ".join(page.text.split())
    for words in ("ingest_text.documents", "36", "s8 8", "and 2 more, 3", "MIT 30", "no licence stated 5"):
        assert words in text, words
    assert "s1 1" not in text
    assert HOSTILE in page.text
    assert "script" not in page.tags()
    assert "pretrain_1" not in text
    assert licenses.section({"nodes": []}) is None


def test_dollars_and_energy_of_a_stage_are_those_of_its_machine(ledger: Ledger) -> None:
    """61 s on two cards: by infra/gpu_prices.toml; a processor's watts are not known, so it has no energy."""
    tiny = profiles.load("tiny", PIPELINE)
    resources = {**tiny.resources, "pretrain_1": Resources(gpus=2)}
    publish(ledger, "pretrain_1")
    publish(ledger, "collect")
    data = report.collect(ledger, "tiny", PIPELINE, replace(tiny, resources=resources))
    uses = {node["name"]: node["use"] for node in data["nodes"] if node["use"]}
    assert sorted(uses) == ["collect", "pretrain_1"]
    assert round(uses["pretrain_1"]["gpu_hours"], 5) == round(2 * 61 / 3600, 5)
    assert uses["pretrain_1"]["dollars"] > 0
    section = provenance.costs(data)
    assert section is not None
    text = " ".join(Page(str(section.body)).text.split())
    assert "0.03$" in text  # its cells: GPU hours, dollars
    assert "kWh" in text
    plain = provenance.costs(report.collect(ledger, "tiny"))
    assert plain is not None
    assert "$" not in plain.body
