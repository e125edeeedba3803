"""The run report: what it shows is what the manifests say, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import charts, observe, profiles, report
from flows.plan import differences
from flows.report import data as collected
from flows.report import markup, overview, scores, training
from stages.core.artifacts import ArtifactManifest, FileEntry
from stages.core.contracts import Attempt, CodeRef, InfraError, InputRef, StageResult
from stages.core.keys import artifact_digest, sha256, source_digest
from stages.core.ledger import Ledger, NodeRecord
from stages.formats.reports import Aggregate, EvaluatedModel, Harness, Report, Score
from stages.pipeline import PIPELINE
from tests import support

HOSTILE = '<script>alert(1)</script>"\'><img src=x onerror=alert(2)>&amp;'
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """A page, parsed: its elements, text and whether tags are nested properly."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += data

    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}


def manifest(type: str, files: tuple[FileEntry, ...] = (), **meta: Any) -> ArtifactManifest:
    return ArtifactManifest(type=type, digest=artifact_digest(type, {"meta": json.dumps(meta)}, files), facets={}, meta=meta, files=files)


def publish(
    ledger: Ledger,
    node: str,
    *,
    stats: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    outputs: dict[str, ArtifactManifest] | None = None,
    inputs: dict[str, tuple[InputRef, ...]] | None = None,
    metrics: list[dict[str, float]] | None = None,
    source: str | None = None,
    profile: str = "tiny",
) -> StageResult:
    """A result as an attempt would have left it."""
    stage, key = PIPELINE[node].stage, sha256(node.encode())
    rows = f"objects/{stage}/{key}/000001/metrics.jsonl"
    if metrics is not None:
        ledger.store.put(rows, "".join(json.dumps(row) + "\n" for row in metrics).encode())
    result = StageResult(
        key=key, node=node, stage=stage, revision=PIPELINE[node].revision, config=config or {}, identity=config or {}, inputs=inputs or {}, outputs=outputs or {},
        stats=stats or {}, metrics_object=None if metrics is None else rows,
        code=CodeRef(source_digest=source or source_digest(stage), git_commit="c0ffee" * 6),
        attempt=Attempt(
            run_id="run-1", epoch=1, started_at="2026-01-02T03:04:05.000+00:00", ended_at="2026-01-02T03:05:06.000+00:00",
            wall_seconds=61.0, cpu_seconds=91.5, peak_rss_bytes=123_400_000, bytes_in=10, bytes_out=20, machine={"processor": "abacus", "cores": 2},
        ),
    )  # fmt: skip
    ledger.store.put(f"manifests/{key}.json", result.model_dump_json().encode())
    ledger.set_node(profile, NodeRecord(node=node, key=key, run_id="run-1", at="2026-01-02T03:05:06.000+00:00"))
    return result


def score(task: str, value: float, stderr: float | None, **fields: Any) -> Score:
    given: dict[str, Any] = {
        "suite": "zero_shot", "metric": "acc_norm", "headline": True, "n": 100, "n_total": 100, "num_fewshot": 0, "data_set": "owner/set",
        "split": "test", "task_version": "1", "truncated": 0, "in_domain": False, "comparable_to_paper": True,
    }  # fmt: skip
    return Score(task=task, value=value, stderr=stderr, **(given | fields))


def evaluation(node: str, *results: Score, trained_on: tuple[str, ...] = ()) -> Report:
    mean = sum(s.value for s in results if s.headline) / sum(s.headline for s in results)
    return Report(
        model=EvaluatedModel(node=node, digest="d" * 64, parameters=1, dtype="float32", trained_on=trained_on),
        harness=Harness(name="lm-evaluation-harness", version="0.4.13"),
        seed=1234,
        results=results,
        aggregates=(Aggregate(suite="zero_shot", value=mean, stderr=0.01, tasks=len(results)),),
    )


def publish_report(ledger: Ledger, node: str, found: Report | bytes) -> str:
    """An evaluation's result; returns the object key of its report.json."""
    body = found if isinstance(found, bytes) else found.model_dump_json().encode()
    key = f"objects/evaluate/{sha256(node.encode())}/000001/report/report.json"
    ledger.store.put(key, body)
    files = (FileEntry(path="report.json", size=len(body), sha256=sha256(body), object=key),)
    publish(ledger, node, outputs={"report": manifest("EvalReport", files)})
    return key


@pytest.fixture
def trained(ledger: Ledger) -> Ledger:
    """Three phases of training, deduplication, and both evaluations."""
    parent: dict[str, tuple[InputRef, ...]] = {}
    for number in (1, 2, 3):
        name, model = f"pretrain_{number}", manifest("Model", number=number)
        rows = [{"step": s, "tokens": 100 * s, "loss": 9.0 - number - s / 10, "learning_rate": 1e-3} for s in range(1, 11)]
        rows[-1]["val_loss"] = 5.4321
        stats = {"parameters": 1234567, "steps": 10, "tokens": 1000, "epochs": 0.5, "final_loss": 6.789, "val_loss": 5.4321, "skipped_steps": 0, "tokens_per_second": 4321, "tflops_per_second": 0.25, "device": "cpu"}
        done = publish(ledger, name, stats=stats, config={"sequence_length": 128, "learning_rate": 1e-3}, outputs={"model": model}, inputs=parent, metrics=rows)
        parent = {"parent": (InputRef(node=name, key=done.key, port="model", manifest=model),)}
    funnel = {"in": {"documents": 1000, "bytes": 80_000}, "out": {"documents": 777, "bytes": 60_000}, "near duplicate": {"documents": 223, "bytes": 20_000}}
    publish(ledger, "dedup_text", stats={"recipe": "slimpajama", "funnel": funnel, "documents": 777, "text_bytes": 60_000, "clusters": 3, "cluster_sizes": {"2": 3}, "example_clusters": [["doc-a", "doc-b"]], "lengths": [{"from": 64, "documents": 776}, {"from": 128, "documents": 1}]})
    publish(ledger, "ingest_web", stats={"records": 40, "documents": 30, "text_bytes": 9000, "skipped": {"not HTML": 4}, "dropped": {"too few stop words": {"documents": 6, "bytes": 12_000}}, "languages": {"en": 3, "fr": 1}, "lengths": [{"from": 256, "documents": 36}]})
    publish(ledger, "tokenizer", stats={"vocab_size": 999, "origin": "train", "bytes_per_token": 4.0, "sampled_documents": 10})
    publish(ledger, "tokenize_short", stats={"windows": 7, "heldout_windows": 1, "tokens": 896, "sources": [{"node": "dedup_text", "documents": 770, "tokens": 896, "epochs": 0.9}], "funnel": {"in": {"documents": 777, "bytes": 60_000, "tokens": 1234}, "held out": {"documents": 7, "bytes": 500, "tokens": 234}, "cut by the mixture": {"tokens": 104}}})
    publish_report(ledger, "evaluate_original", evaluation("pretrain_2", score("hellaswag", 0.25, 0.03), score("piqa", 0.50, 0.05), score("arc_easy", 0.5, None)))
    better = score("hellaswag", 0.40, 0.04, in_domain=True, comparable_to_paper=False, note="60 of 200 documents")
    publish_report(ledger, "evaluate_enhanced", evaluation("pretrain_3", better, score("piqa", 0.55, 0.05), score("arc_easy", 0.75, None), trained_on=("hellaswag",)))
    return ledger


def test_the_corpus_is_told_by_reason_in_documents_bytes_and_tokens(trained: Ledger) -> None:
    page = " ".join(re.sub(r"<[^>]+>", " ", report.render(report.collect(trained, "tiny"))).split())
    assert "near duplicate 223 22.3 % 20.0 kB 25.0 % 5,000" in page
    assert "not HTML 4 10.0 %" in page
    assert "rule: too few stop words 6 15.0 % 12.0 kB 3,000" in page
    assert "Language Documents en 3 fr 1" in page
    assert "From (bytes) Documents 64 776 128 1" in page
    assert "held out 7 500 B 234" in page
    assert re.search(r"cut by the mixture \S+ \S+ 104", page)


# --- collecting -----------------------------------------------------------------------------------------------------


def test_collect_tells_what_the_manifests_say(finished_run: Ledger) -> None:
    pipeline = support.small_pipeline()
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
    data = report.collect(finished_run, "test", support.small_pipeline())
    page = Page(report.render(data))
    for node in data["nodes"]:
        assert node["name"] in page.text
        assert node["result"]["key"][:12] in page.text
        assert {node["result"]["key"], *(o["digest"] for o in node["result"]["outputs"].values())} <= {a.get("title") for _, a in page.elements}
    assert report.summary(data)[0].startswith("profile test: 6 of 6 nodes have a result")


def test_an_empty_ledger_is_all_missing(ledger: Ledger) -> None:
    data = report.collect(ledger, "tiny")
    assert {(node["state"], node["why"]) for node in data["nodes"]} == {("missing", "never ran in this profile")}
    assert all(node["result"] is None and not node["reports"] for node in data["nodes"])
    page = Page(report.render(data))
    assert all(page.text.count(node.name) >= 2 for node in PIPELINE)  # in the warning and in the tables
    section = scores.ablation(data)
    assert section is not None
    assert "<table>" not in section.body
    assert section.body.count("Missing: ") == 2
    assert len(report.summary(data)) == 2
    assert "evaluate_enhanced" in report.summary(data)[1]


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
    assert nodes["pretrain_3"]["state"] == "ok"
    assert (nodes["dedup_web"]["state"], nodes["dedup_web"]["why"]) == ("drift", "the code of stage dedup changed since")
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
    assert nodes["tokenizer"]["state"] == "ok"
    assert nodes["dedup_text"]["state"] == "changed"
    assert nodes["dedup_text"]["why"] == "made with other settings than the profile has: recipe dclm -> slimpajama"
    publish(ledger, "pretrain_1")
    node = collected.node_of(report.collect(ledger, "tiny", PIPELINE, values), "pretrain_1")
    assert node is not None
    assert node["why"].count(" -> ") == collected.SETTINGS
    assert node["why"].endswith(f"and {len(differences('', {}, values.configs['pretrain_1'].identity())) - collected.SETTINGS} more")


@pytest.mark.parametrize(
    ("body", "after", "problem"),
    [(b'{"schema_version": 99}', None, "is no evaluation report of version"), (b"{}", b"{ }", "is not what was published")],
)
def test_a_report_that_cannot_be_used_is_a_problem_not_a_number(ledger: Ledger, body: bytes, after: bytes | None, problem: str) -> None:
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


@given(st.lists(st.booleans(), max_size=300), st.integers(1, 40))
def test_thinning_keeps_the_ends_and_every_held_out_row(held_out: list[bool], most: int) -> None:
    rows = [{"step": float(i), **({"val_loss": 1.0} if held else {})} for i, held in enumerate(held_out)]
    kept = collected.thin(rows, most)
    assert [row for row in rows if "val_loss" in row] == [row for row in kept if "val_loss" in row]
    assert kept[:1] + kept[-1:] == rows[:1] + rows[-1:]
    assert len(kept) <= most + sum(held_out) + 1
    assert kept == sorted(kept, key=lambda row: row["step"])


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_page_shows_the_numbers_of_the_manifests(trained: Ledger) -> None:
    page = Page(report.render(report.collect(trained, "tiny")))
    for text in ("1,234,567", "6.789", "5.432", "4,321", "777", "223", "22.3 %", "75.0 %", "doc-a", "123.4 MB", "1 min 01 s", "1 min 32 s", "abacus", "2026-01-02 03:04 to 03:05 UTC"):
        assert text in page.text, text


def test_the_page_refers_to_nothing_outside_itself(trained: Ledger) -> None:
    text = report.render(report.collect(trained, "tiny"))
    page = Page(text)
    assert not page.tags() & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image", "audio", "video"}
    anchors = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            assert name not in attributes or attributes[name].removeprefix("#") in anchors, (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in text
    assert not [url for url in text.split("url(")[1:] if not url.startswith("#")]
    assert "http:" not in text
    assert "https:" not in text


def test_hostile_strings_stay_text(trained: Ledger) -> None:
    publish(trained, "dedup_web", config={"recipe": HOSTILE, HOSTILE: [HOSTILE]}, stats={"recipe": HOSTILE, "funnel": {"in": {"documents": 1, "bytes": 1}, "out": {"documents": 0, "bytes": 0}, HOSTILE: {"documents": 1, "bytes": 1}}, "documents": 0, "text_bytes": 0, "clusters": 1, "cluster_sizes": {HOSTILE: 1}, "example_clusters": [[HOSTILE]]})
    publish(trained, "capability", stats={"train_questions": {HOSTILE: 1}, "removed": {HOSTILE: {HOSTILE: 2}}}, outputs={"suite": manifest("EvalSuite", origin=HOSTILE)})
    publish(trained, "tokenizer", stats={"origin": HOSTILE})
    publish_report(trained, "evaluate_original", evaluation(HOSTILE, score(HOSTILE, 0.5, 0.1, comparable_to_paper=False, note=HOSTILE), trained_on=(HOSTILE,)))
    page = Page(report.render(report.collect(trained, "tiny")))
    assert not page.tags() & {"script", "img"}
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.text.count(HOSTILE) >= 10


def test_loss_of_the_phases_lies_on_one_axis(trained: Ledger) -> None:
    nodes = list(collected.nodes_of(report.collect(trained, "tiny"), "pretrain"))
    found = training.phases(nodes)
    assert [(phase.name, phase.start) for phase in found] == [("pretrain_1", 0), ("pretrain_2", 1000), ("pretrain_3", 2000)]
    assert found[2].points("loss")[0] == [2000 + 100 * s for s in range(1, 11)]
    assert found[1].points("val_loss") == ([2000], [5.4321])


def test_missing_phases_are_named(ledger: Ledger) -> None:
    publish(ledger, "pretrain_1", stats={"tokens": 10, "steps": 1}, metrics=[{"step": 1, "tokens": 10, "loss": 1.0}])
    section = training.losses(report.collect(ledger, "tiny"))
    assert section is not None
    assert "Missing: pretrain_2, pretrain_3." in section.body
    assert "missing</span>" in section.body  # the statistics that this result does not have


# --- the ablation ---------------------------------------------------------------------------------------------------


def row_of(section: report.Section | None, task: str) -> str:
    assert section is not None
    row = next(row for row in section.body.split("<tr>") if row.startswith(f"<td>{task} "))
    return " | ".join(Page(f"<table>{cell}</td></table>").text.strip() for cell in row.partition("</tr>")[0].split("</td>")[:-1])


def test_the_ablation_computes_differences_and_stands_beside_the_paper(trained: Ledger) -> None:
    section = scores.ablation(report.collect(trained, "tiny"))
    noted = row_of(section, "hellaswag")
    assert noted.startswith("hellaswag acc_norm | 0 | 100 | 25.0 ±3.0 | 40.0 ±4.0 | +15.0 ±5.0 | yes, better | 72.06 | 80.03 | +7.97 | ")
    assert "in-domain after training" in noted
    assert "not comparable to the paper" in noted
    assert row_of(section, "piqa") == "piqa acc_norm | 0 | 100 | 50.0 ±5.0 | 55.0 ±5.0 | +5.0 ±7.1 | no | 78.07 | 82.24 | +4.17 | –"
    assert row_of(section, "arc_easy") == "arc_easy acc_norm | 0 | 100 | 50.0 | 75.0 | +25.0 | – | 71.47 | 81.12 | +9.65 | –"
    assert section is not None
    assert "60 of 200 documents (hellaswag)" in section.body
    assert "In-domain: hellaswag." in section.body


def test_the_summary_says_how_much_of_the_ablation_is_beyond_noise(trained: Ledger) -> None:
    lines = report.summary(report.collect(trained, "tiny"))
    assert "zero shot: Original 41.7, Enhanced 56.7 (+15.0); 1 of 3 tasks differ by more than 2 standard errors" in lines
    assert "pretrain_2: 1 k tokens, last loss 6.789, held out 5.432" in lines
    assert "dedup_text: 777 of 1,000 documents, 75.0 % of the bytes" in lines
    assert any(line.startswith("  missing: ") and "collect" in line for line in lines)


def test_a_task_that_one_side_lacks_is_missing_there(trained: Ledger) -> None:
    publish_report(trained, "evaluate_original", evaluation("pretrain_2", score("winogrande", 0.5, 0.1, metric="acc")))
    section = scores.ablation(report.collect(trained, "tiny"))
    assert row_of(section, "winogrande").startswith("winogrande acc | 0 | 100 | 50.0 ±10.0 | missing | – | – | 66.31")
    assert row_of(section, "piqa").startswith("piqa acc_norm | 0 | 100 | missing | 55.0 ±5.0 | – | –")


def test_only_the_metric_that_the_paper_prints_is_compared(trained: Ledger) -> None:
    publish_report(trained, "evaluate_original", evaluation("pretrain_2", score("piqa", 0.5, 0.05), score("piqa", 0.9, 0.05, headline=False, metric="acc")))
    section = scores.ablation(report.collect(trained, "tiny"))
    assert row_of(section, "piqa").startswith("piqa acc_norm | 0 | 100 | 50.0 ±5.0 | 55.0 ±5.0")
    assert section is not None
    assert "90.0" not in section.body


def test_other_shots_than_the_papers_are_told(trained: Ledger) -> None:
    for node in ("evaluate_original", "evaluate_enhanced"):
        publish_report(trained, node, evaluation(node, score("mmlu", 0.5, 0.1, suite="few_shot", num_fewshot=2), score("winogrande", 0.5, 0.1, suite="few_shot", num_fewshot=5)))
    section = scores.ablation(report.collect(trained, "tiny"))
    assert row_of(section, "mmlu").endswith("paper: 5 shots")
    assert row_of(section, "winogrande").endswith(" | –")


def test_the_papers_wrong_average_is_flagged(trained: Ledger) -> None:
    publish_report(trained, "evaluate_original", evaluation("pretrain_2", score("mmlu", 0.5, 0.1, suite="few_shot", num_fewshot=5)))
    section = scores.ablation(report.collect(trained, "tiny"))
    assert section is not None
    assert section.body.count("is wrong") == 1
    assert "printed 71.48 is wrong" in section.body


SIDE = st.one_of(st.none(), st.fixed_dictionaries({"value": st.floats(0, 1), "stderr": st.one_of(st.none(), st.floats(0, 0.5))}))


@given(SIDE, SIDE)
def test_swapping_the_sides_turns_the_sign_and_keeps_the_verdict(left: Any, right: Any) -> None:
    one, other = scores.Pair(left, right), scores.Pair(right, left)
    assert one.beyond_noise == other.beyond_noise
    assert (one.difference is None) == (left is None or right is None)
    if one.difference is not None:
        assert one.difference == -(other.difference or 0.0)
    if one.beyond_noise:
        assert one.difference is not None
        assert one.stderr is not None
        assert abs(one.difference) > 2 * max(left["stderr"], right["stderr"])


# --- the picture ----------------------------------------------------------------------------------------------------


def test_every_node_stands_below_its_parents() -> None:
    nodes = [{"name": node.name, "parents": list(node.parents)} for node in PIPELINE]
    level = {name: index for index, row in enumerate(overview.layers(nodes)) for name in row}
    assert sorted(level) == sorted(node.name for node in PIPELINE)
    assert all(level[parent] < level[node.name] for node in PIPELINE for parent in node.parents)
    readers = {node.name: [level[other.name] for other in PIPELINE if node.name in other.parents] for node in PIPELINE}
    assert all(level[name] == min(levels) - 1 for name, levels in readers.items() if levels)


def test_phases_are_drawn_in_the_colours_of_the_page() -> None:
    rows = [{"tokens": 10 * i, "loss": 5 - i, "val_loss": 5.0, "learning_rate": 0.1} for i in range(4)]
    phases = [charts.Phase("one <phase>", 0, rows), charts.Phase("two", 30, rows)]
    once = charts.phases_svg(phases)
    assert once == charts.phases_svg(phases)
    assert "currentColor" in once
    assert charts.INK not in once
    assert "#ffffff" not in once
    assert "one &lt;phase&gt;" in once
    assert "<text" in charts.lines_svg({"a": rows, "b": [{"tokens": 1}]}, "tokens", "loss", "tokens", "loss")


def test_scores_are_drawn_with_their_intervals_where_they_are_known() -> None:
    both = charts.intervals_svg(["a", "b"], {"Original": [(50.0, 5.0), None], "Enhanced": [None, (60.0, 0.0)]}, "score")
    assert both == charts.intervals_svg(["a", "b"], {"Original": [(50.0, 5.0), None], "Enhanced": [None, (60.0, 0.0)]}, "score")
    assert all(f">{word}</text>" in both for word in ("a", "b", "Original", "Enhanced", "score"))
    nothing = charts.intervals_svg(["a"], {"Original": [None]}, "score")
    assert nothing.count("<use") < both.count("<use")


@given(st.lists(st.floats(-100, 100), max_size=50))
def test_smoothing_stays_within_its_window(values: list[float]) -> None:
    smooth = charts.smoothed(values, 5)
    assert len(smooth) == len(values)
    assert smooth[:1] == values[:1]
    for index, value in enumerate(smooth):
        near = values[max(0, index - 2) : index + 3]
        assert min(near) - 1e-9 <= value <= max(near) + 1e-9


# --- writing --------------------------------------------------------------------------------------------------------


def test_a_page_is_replaced_whole_or_not_at_all(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, path = report.collect(ledger, "tiny"), tmp_path / "new" / "report.html"
    report.write(data, path)
    assert path.read_text(encoding="utf-8") == report.render(data)
    path.write_text("old")

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InfraError, match=r"report\.html: No space left on device"):
        report.write(data, path)
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_folder_in_the_way_is_one_clear_error(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(InfraError, match="cannot be written"):
        report.write(report.collect(ledger, "tiny"), tmp_path)


@pytest.mark.parametrize(
    ("make", "value", "text"),
    [
        (markup.size, 999, "999 B"), (markup.size, 4_940_000, "4.9 MB"), (markup.size, 0, "0 B"), (markup.duration, 59.94, "59.9 s"),
        (markup.duration, 61, "1 min 01 s"), (markup.duration, 7322, "2 h 02 min"), (markup.short, 799_744, "800 k"), (markup.short, 8.114e9, "8.11 B"),
        (markup.short, 2e12, "2 T"), (markup.short, 999_999, "1 M"), (markup.number, 1234567, "1,234,567"), (markup.number, None, markup.MISSING),
        (markup.number, True, markup.MISSING), (markup.size, None, markup.MISSING), (markup.duration, "x", markup.MISSING),
    ],
)  # fmt: skip
def test_numbers_for_people(make: Callable[[Any], str], value: Any, text: str) -> None:
    assert make(value) == text


# --- outside the page -----------------------------------------------------------------------------------------------


def test_the_ablation_as_plain_rows_is_the_same_as_on_the_page(trained: Ledger) -> None:
    rows = scores.ablation_rows(report.collect(trained, "tiny"))
    verdict = "beyond 2 standard errors"
    assert rows[0] == {"suite": "zero_shot", "task": "hellaswag", "Original": "25.0 ±3.0", "Enhanced": "40.0 ±4.0", "difference": "+15.0 ±5.0", verdict: "yes"}
    assert [(row["task"], row[verdict]) for row in rows] == [("hellaswag", "yes"), ("piqa", "no"), ("arc_easy", ""), ("average of 3", "yes")]
    trained.store.delete([f"manifests/{sha256(b'evaluate_original')}.json"])
    assert scores.ablation_rows(report.collect(trained, "tiny")) == []


def test_the_scores_of_one_evaluation_as_plain_rows() -> None:
    found = evaluation("m", score("piqa", 0.5, 0.05), score("piqa", 0.4, 0.05, headline=False, metric="acc"), score("mmlu", 0.25, None, in_domain=True, comparable_to_paper=False))
    rows = scores.rows_of(found.model_dump(mode="json"))
    assert [list(row.values()) for row in rows] == [
        ["zero_shot", "piqa", "0", "acc_norm", "50.0", "5.0", "100", ""],
        ["zero_shot", "mmlu", "0", "acc_norm", "25.0", "", "100", "in-domain, not comparable to the paper"],
    ]


def test_a_run_ends_with_the_page_and_its_short_form_in_prefect(trained: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, dict[str, Any]] = {}
    for kind in ("table", "markdown"):
        monkeypatch.setattr(observe, f"create_{kind}_artifact", lambda key, **fields: shown.update({key: fields}))
    path = observe.run_report(trained, profiles.load("tiny", PIPELINE), PIPELINE, tmp_path)
    assert path == tmp_path / "report" / "tiny.html"
    assert Page(path.read_text(encoding="utf-8")).text.count("Moxin run report") == 1
    assert [row["task"] for row in shown["ablation"]["table"]][:2] == ["hellaswag", "piqa"]
    assert str(path) in shown["run-report"]["markdown"]
    for line in report.summary(report.collect(trained, "tiny")):
        assert line in shown["run-report"]["markdown"]


def test_trouble_with_the_report_is_told_and_never_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import moxin

    told: list[str] = []
    log = SimpleNamespace(warning=lambda *a: told.append("warning"), exception=lambda *a: told.append("exception"), info=lambda *a: told.append("info"))
    monkeypatch.setattr(moxin, "get_run_logger", lambda: log)
    execution: Any = SimpleNamespace(ledger=None, profile=None, home=None)
    for error in (InfraError("no room"), ValueError("a fault"), None):

        def made(*arguments: Any, error: Exception | None = error) -> str:
            if error:
                raise error
            return "page"

        monkeypatch.setattr(observe, "run_report", made)
        moxin._report(execution)
    assert told == ["warning", "exception", "info"]
