"""The run report: what it shows is what the manifests say, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import charts, prefect_artifacts, profiles, report
from flows.report import data as collected
from flows.report import markup, overview, plots, training
from stages.core.errors import InfraError
from stages.core.ledger import Ledger
from stages.pipeline import PIPELINE
from tests.support.report_pages import HOSTILE, Page, publish
from tests.support.report_results import evaluation, manifest, publish_report, score


def test_the_corpus_is_told_by_reason_in_documents_bytes_and_tokens(trained: Ledger) -> None:
    page = " ".join(re.sub(r"<[^>]+>", " ", report.render(report.collect(trained, "tiny"))).split())
    assert "near duplicate 223 22.3 % 20.0 kB 25.0 % 5,000" in page
    assert "not HTML 4 10.0 %" in page
    assert "rule: too few stop words 6 15.0 % 12.0 kB 3,000" in page
    assert "Language Documents en 3 fr 1" in page
    assert "From (bytes) Documents 64 776 128 1" in page
    assert "held out 7 500 B 234" in page
    assert re.search(r"cut by the mixture \S+ \S+ 104", page)


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_page_shows_the_numbers_of_the_manifests(trained: Ledger) -> None:
    page = Page(report.render(report.collect(trained, "tiny")))
    for text in (
        "1,234,567",
        "6.789",
        "5.432",
        "4,321",
        "777",
        "223",
        "22.3 %",
        "75.0 %",
        "doc-a",
        "123.4 MB",
        "1 min 01 s",
        "1 min 32 s",
        "abacus",
        "2026-01-02 03:04 to 03:05 UTC",
    ):
        assert text in page.text, text


def test_the_page_refers_to_nothing_outside_itself(trained: Ledger) -> None:
    text = report.render(report.collect(trained, "tiny"))
    page = Page(text)
    for script in plots.scripts():  # nothing else runs: see the policy
        assert text.count(f"<script>{script}</script>") == 1
        text = text.replace(script, "")
    assert [a.get("type") for tag, a in page.elements if tag == "script"] == ["application/json", None, None]
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert not page.tags() & {
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "image",
        "audio",
        "video",
    }
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
    publish(
        trained,
        "dedup_web",
        config={"recipe": HOSTILE, HOSTILE: [HOSTILE]},
        stats={
            "recipe": HOSTILE,
            "funnel": {
                "in": {"documents": 1, "bytes": 1},
                "out": {"documents": 0, "bytes": 0},
                HOSTILE: {"documents": 1, "bytes": 1},
            },
            "documents": 0,
            "text_bytes": 0,
            "clusters": 1,
            "cluster_sizes": {HOSTILE: 1},
            "example_clusters": [[HOSTILE]],
        },
    )
    publish(
        trained,
        "capability",
        stats={"train_questions": {HOSTILE: 1}, "removed": {HOSTILE: {HOSTILE: 2}}},
        outputs={"suite": manifest("EvalSuite", origin=HOSTILE)},
    )
    publish(trained, "tokenizer", stats={"origin": HOSTILE})
    publish_report(
        trained,
        "evaluate_original",
        evaluation(HOSTILE, score(HOSTILE, 0.5, 0.1, comparable_to_paper=False, note=HOSTILE), trained_on=(HOSTILE,)),
    )
    page = Page(report.render(report.collect(trained, "tiny")))
    assert "img" not in page.tags()
    assert [a.get("type") for tag, a in page.elements if tag == "script"] == ["application/json", None, None]
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.text.count(HOSTILE) >= 10


def test_loss_of_the_phases_lies_on_one_axis(trained: Ledger) -> None:
    nodes = list(collected.nodes_of(report.collect(trained, "tiny"), "pretrain"))
    found = training.phases(nodes)
    assert [(phase.name, phase.start) for phase in found] == [
        ("pretrain_1", 0),
        ("pretrain_2", 1000),
        ("pretrain_3", 2000),
    ]
    assert found[2].points("loss")[0] == [2000 + 100 * s for s in range(1, 11)]
    assert found[1].points("val_loss") == ([2000], [5.4321])


def test_missing_phases_are_named(ledger: Ledger) -> None:
    publish(ledger, "pretrain_1", stats={"tokens": 10, "steps": 1}, metrics=[{"step": 1, "tokens": 10, "loss": 1.0}])
    section = training.losses(report.collect(ledger, "tiny"))
    assert section is not None
    assert "Missing: pretrain_2, pretrain_3." in section.body
    assert "missing</span>" in section.body  # the statistics that this result does not have


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
    assert both == charts.intervals_svg(
        ["a", "b"], {"Original": [(50.0, 5.0), None], "Enhanced": [None, (60.0, 0.0)]}, "score"
    )
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


def test_a_page_is_replaced_whole_or_not_at_all(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        (markup.size, 999, "999 B"), (markup.size, 4_940_000, "4.9 MB"), (markup.size, 0, "0 B"),
        (markup.duration, 59.94, "59.9 s"),
        (markup.duration, 61, "1 min 01 s"), (markup.duration, 7322, "2 h 02 min"), (markup.short, 799_744, "800 k"),
        (markup.short, 8.114e9, "8.11 B"),
        (markup.short, 2e12, "2 T"), (markup.short, 999_999, "1 M"), (markup.number, 1234567, "1,234,567"),
        (markup.number, None, markup.MISSING),
        (markup.number, True, markup.MISSING), (markup.size, None, markup.MISSING),
        (markup.duration, "x", markup.MISSING),
    ],
)  # fmt: skip
def test_numbers_for_people(make: Callable[[Any], str], value: Any, text: str) -> None:
    assert make(value) == text


def test_a_run_ends_with_the_page_and_its_short_form_in_prefect(
    trained: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, dict[str, Any]] = {}
    for kind in ("table", "markdown"):
        monkeypatch.setattr(
            prefect_artifacts, f"create_{kind}_artifact", lambda key, **fields: shown.update({key: fields})
        )
    api_calls = prefect_artifacts.ApiCallQueue()
    path = prefect_artifacts.run_report(trained, profiles.load("tiny", PIPELINE), PIPELINE, tmp_path, api_calls)
    assert api_calls.close() is None
    assert path == tmp_path / "report" / "tiny.html"
    assert Page(path.read_text(encoding="utf-8")).text.count("Moxin run report") == 1
    assert [row["task"] for row in shown["ablation"]["table"]][:2] == ["hellaswag", "piqa"]
    assert [row["model"] for row in shown["paper-table-2"]["table"]][:3] == [
        "Original",
        "Enhanced",
        "paper: Mistral-7B",
    ]
    assert shown["paper-table-2"]["description"].startswith("Table 2: Base models, zero-shot")
    assert "paper-table-4" not in shown  # no score yet
    assert str(path) in shown["run-report"]["markdown"]
    for line in report.summary(report.collect(trained, "tiny")):
        assert line in shown["run-report"]["markdown"]


def test_trouble_with_the_report_is_told_and_never_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import flow

    told: list[str] = []
    log = SimpleNamespace(
        warning=lambda *a: told.append("warning"),
        exception=lambda *a: told.append("exception"),
        info=lambda *a: told.append("info"),
    )
    monkeypatch.setattr(flow, "get_run_logger", lambda: log)
    run: Any = SimpleNamespace(execution=SimpleNamespace(ledger=None, profile=None, home=None), api_calls=None)
    for error in (InfraError("no room"), ValueError("a fault"), None):

        def made(*arguments: Any, error: Exception | None = error) -> str:
            if error:
                raise error
            return "page"

        monkeypatch.setattr(prefect_artifacts, "run_report", made)
        flow._report(run)
    assert told == ["warning", "exception", "info"]
