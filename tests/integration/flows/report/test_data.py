"""What is read from the ledger for the report: manifests, states, evaluation reports, samples."""

from __future__ import annotations

import json

import pytest

from flows import profiles, report
from flows.plan import differences
from flows.report import ablation
from flows.report import data as collected
from stages.core.artifacts import FileEntry
from stages.core.keys import sha256
from stages.core.ledger import Ledger
from stages.core.records import NodeRecord
from stages.pipeline import PIPELINE
from tests.support import probe_pipeline
from tests.support.report_pages import Page, publish
from tests.support.report_results import evaluation, manifest, publish_report, score


def test_collect_tells_what_the_manifests_say(finished_run: Ledger) -> None:
    pipeline = probe_pipeline.small_pipeline()
    data = report.collect(finished_run, "test", pipeline)
    assert json.loads(json.dumps(data)) == data
    assert [node["name"] for node in data["nodes"]] == [node.name for node in pipeline]
    records = finished_run.nodes("test")
    for node in data["nodes"]:
        found = finished_run.manifest(records[node["name"]].key)
        assert found is not None
        said = dict(node["result"])
        rows = said.pop("metrics")
        assert said == found[0].model_dump(mode="json")
        assert (node["state"], node["why"], node["run_id"]) == ("ok", "", "run-1")
        kept = finished_run.store.get(found[0].metrics_object) if found[0].metrics_object else None
        assert rows == ([json.loads(line) for line in kept[0].splitlines()] if kept else [])
    assert any(node["result"]["metrics"] for node in data["nodes"])


def test_a_pipeline_of_other_stages_gets_a_page_too(finished_run: Ledger) -> None:
    data = report.collect(finished_run, "test", probe_pipeline.small_pipeline())
    page = Page(report.render(data))
    for node in data["nodes"]:
        assert node["name"] in page.text
        assert node["result"]["key"][:12] in page.text
        assert {node["result"]["key"], *(o["digest"] for o in node["result"]["outputs"].values())} <= {
            a.get("title") for _, a in page.elements
        }
    assert report.summary(data)[0].startswith("profile test: 6 of 6 nodes have a result")


def test_an_empty_ledger_is_all_missing(ledger: Ledger) -> None:
    data = report.collect(ledger, "tiny")
    assert {(node["state"], node["why"]) for node in data["nodes"]} == {("missing", "never ran in this profile")}
    assert all(node["result"] is None and not node["reports"] for node in data["nodes"])
    page = Page(report.render(data))
    assert all(page.text.count(node.name) >= 2 for node in PIPELINE)  # in the warning and in the tables
    section = ablation.ablation(data)
    assert section is not None
    assert "<table>" not in section.body
    assert section.body.count("Missing: ") == 2
    assert len(report.summary(data)) == 3
    assert "evaluate_enhanced" in report.summary(data)[1]
    assert report.summary(data)[2].startswith("contamination: not measured")


def test_a_record_without_a_manifest_is_missing(trained: Ledger) -> None:
    trained.set_node("tiny", NodeRecord(node="pretrain_3", key="f" * 64, run_id="r", at="2026"))
    node = collected.node_of(report.collect(trained, "tiny"), "pretrain_3")
    assert node is not None
    assert (node["state"], node["why"], node["result"]) == ("missing", "its last result is gone from the store", None)


def test_drift_stale_and_damaged_are_told_apart(trained: Ledger) -> None:
    publish(trained, "pretrain_1", outputs={"model": manifest("Model", number="other")})  # pretrain_2 read another
    publish(trained, "dedup_web", source="0" * 64)
    lost = publish_report(trained, "evaluate_original", evaluation("pretrain_2", score("piqa", 0.5, 0.1)))
    trained.store.delete([lost])
    data = report.collect(trained, "tiny")
    nodes = {node["name"]: node for node in data["nodes"]}
    assert nodes["pretrain_2"]["state"] == "stale"
    assert "pretrain_1" in nodes["pretrain_2"]["why"]
    assert (nodes["pretrain_3"]["state"], nodes["pretrain_3"]["why"]) == ("stale", "follows pretrain_2, which is stale")
    assert (nodes["dedup_web"]["state"], nodes["dedup_web"]["why"]) == (
        "drift",
        "the code of stage dedup changed since",
    )
    assert nodes["evaluate_original"]["state"] == "damaged"
    assert nodes["evaluate_original"]["reports"] == {}
    text = Page(report.render(data)).text
    for node in ("pretrain_2", "dedup_web", "evaluate_original"):
        assert nodes[node]["why"] in text
    assert "Missing: evaluate_original has no evaluation report" in text


def test_a_result_of_other_settings_than_the_profiles_is_told(ledger: Ledger) -> None:
    values = profiles.load("tiny", PIPELINE)
    wanted = values.configs["tokenizer"].identity()
    publish(ledger, "tokenizer", config=wanted)
    publish(ledger, "dedup_text", config=values.configs["dedup_text"].identity() | {"recipe": "dclm"})
    nodes = {node["name"]: node for node in report.collect(ledger, "tiny", PIPELINE, values)["nodes"]}
    assert (nodes["tokenizer"]["state"], nodes["tokenizer"]["why"]) == ("stale", "follows dedup_text, which is changed")
    assert nodes["dedup_text"]["state"] == "changed"
    assert nodes["dedup_text"]["why"] == "made with other settings than the profile has: recipe dclm -> slimpajama"
    publish(ledger, "pretrain_1")
    node = collected.node_of(report.collect(ledger, "tiny", PIPELINE, values), "pretrain_1")
    assert node is not None
    assert node["why"].count(" -> ") == collected.SETTINGS
    assert node["why"].endswith(
        f"and {len(differences('', {}, values.configs['pretrain_1'].identity())) - collected.SETTINGS} more"
    )


def test_scores_alone_are_those_of_the_report(ledger: Ledger) -> None:
    """For tables: without what else a report reads, and with the same problems."""
    publish(ledger, "tokenizer")
    publish_report(ledger, "evaluate_original", evaluation("pretrain_2", score("piqa", 0.5, 0.1)))
    ledger.store.put(
        publish_report(ledger, "evaluate_enhanced", evaluation("pretrain_3", score("piqa", 0.6, 0.1))), b"{}"
    )
    whole = {node["name"]: node for node in report.collect(ledger, "tiny")["nodes"]}
    records = ledger.nodes("tiny", ("evaluate_original", "evaluate_enhanced", "math_sft_reason"))
    assert records.keys() == {"evaluate_original", "evaluate_enhanced"}
    nodes = collected.collect_scores(ledger, PIPELINE, records)["nodes"]
    assert [node["name"] for node in nodes] == [node.name for node in PIPELINE]
    for node in nodes:
        name, of_report = node["name"], whole[node["name"]]
        assert (node["reports"], node["problems"]) == (of_report["reports"], of_report["problems"])
        if name in records:
            assert node["result"]["outputs"] == of_report["result"]["outputs"]
        else:
            assert node["result"] is None
    assert whole["evaluate_original"]["reports"]
    assert "is not what was published" in whole["evaluate_enhanced"]["problems"][0]


@pytest.mark.parametrize(
    ("body", "after", "problem"),
    [
        (b'{"schema_version": 99}', None, "is no evaluation report of version"),
        (b"{}", b"{ }", "is not what was published"),
    ],
)
def test_a_report_that_cannot_be_used_is_a_problem_not_a_number(
    ledger: Ledger, body: bytes, after: bytes | None, problem: str
) -> None:
    key = publish_report(ledger, "evaluate_original", body)
    if after:
        ledger.store.put(key, after)
    data = report.collect(ledger, "tiny")
    node = collected.node_of(data, "evaluate_original")
    assert node is not None
    assert node["reports"] == {}
    assert [problem in line for line in node["problems"]] == [True]
    assert problem in Page(report.render(data)).text
    assert any(problem in line for line in report.summary(data))


def test_the_first_samples_of_every_task_are_read_and_a_damaged_file_is_named(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = {
        "samples/table_2.piqa.jsonl": b"".join(b'{"doc_id": %d}\n' % number for number in range(5)),
        "samples/table_2.arc.jsonl": b'{"doc_id": 0}\n',
        "samples/table_2.mmlu.jsonl": b'{"doc_id": 0}\n',
        "samples/table_2.gone.jsonl": b"{}\n",
        "samples/table_2.large.jsonl": b'{"doc_id": 0, "doc": "' + b"x" * 200 + b'"}\n',
        "report.json": b"{}",
    }
    files = tuple(
        FileEntry(path=path, size=len(body), sha256=sha256(body), object=f"objects/{path}")
        for path, body in bodies.items()
    )
    for path, body in bodies.items():
        if "gone" not in path:
            ledger.store.put(f"objects/{path}", body if "mmlu" not in path else b"{}")
    monkeypatch.setattr(collected, "SAMPLES_BYTES", 200)
    rows, left_out, problems = collected.read_samples(ledger, "node.report", manifest("EvalReport", files))
    assert [(row["group"], row["doc_id"]) for row in rows] == [("piqa", 0), ("piqa", 1), ("piqa", 2), ("arc", 0)]
    assert left_out == ["node.report/samples/table_2.large.jsonl"]
    assert problems == [
        "node.report: its samples/table_2.mmlu.jsonl is damaged",
        "node.report: its samples/table_2.gone.jsonl is not in the store",
    ]
