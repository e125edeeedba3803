"""The ablation: differences, what is beyond noise, and the paper's numbers where they may stand."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flows import report
from flows.report import ablation, scores
from stages.core.keys import sha256
from stages.core.ledger import Ledger
from tests.support.report_pages import Page
from tests.support.report_results import evaluation, publish_report, score


def row_of(section: report.Section | None, task: str) -> str:
    assert section is not None
    row = next(row for row in section.body.split("<tr>") if row.startswith(f"<td>{task} "))
    return " | ".join(
        Page(f"<table>{cell}</td></table>").text.strip() for cell in row.partition("</tr>")[0].split("</td>")[:-1]
    )


def test_the_ablation_computes_differences_and_stands_beside_the_paper(trained: Ledger) -> None:
    section = ablation.ablation(report.collect(trained, "tiny"))
    noted = row_of(section, "hellaswag")
    assert noted.startswith(
        "hellaswag acc_norm | 0 | 100 | 25.0 ±3.0 | 40.0 ±4.0 | +15.0 ±5.0 | yes, better | – | – | – | "
    )
    assert "in-domain after training" in noted
    assert "not comparable to the paper" in noted
    assert (
        row_of(section, "piqa")
        == "piqa acc_norm | 0 | 100 | 50.0 ±5.0 | 55.0 ±5.0 | +5.0 ±7.1 | no | 78.07 | 82.24 | +4.17 | –"
    )
    assert (
        row_of(section, "arc_easy")
        == "arc_easy acc_norm | 0 | 100 | 50.0 | 75.0 | +25.0 | – | 71.47 | 81.12 | +9.65 | –"
    )
    assert section is not None
    assert "60 of 200 documents (hellaswag)" in section.body
    assert "In-domain: hellaswag." in section.body


def test_the_summary_says_how_much_of_the_ablation_is_beyond_noise(trained: Ledger) -> None:
    lines = report.summary(report.collect(trained, "tiny"))
    assert (
        "zero shot: Original 41.7, Enhanced 56.7 (+15.0); 1 of 3 tasks differ by more than 2 standard errors" in lines
    )
    assert "pretrain_2: 1 k tokens, last loss 6.789, held out 5.432" in lines
    assert "dedup_text: 777 of 1,000 documents, 75.0 % of the bytes" in lines
    assert any(line.startswith("  missing: ") and "collect" in line for line in lines)


def test_a_task_that_one_side_lacks_is_missing_there(trained: Ledger) -> None:
    publish_report(trained, "evaluate_original", evaluation("pretrain_2", score("winogrande", 0.5, 0.1, metric="acc")))
    section = ablation.ablation(report.collect(trained, "tiny"))
    assert row_of(section, "winogrande").startswith("winogrande acc | 0 | 100 | 50.0 ±10.0 | missing | – | – | 66.31")
    assert row_of(section, "piqa").startswith("piqa acc_norm | 0 | 100 | missing | 55.0 ±5.0 | – | –")


def test_only_the_metric_that_the_paper_prints_is_compared(trained: Ledger) -> None:
    publish_report(
        trained,
        "evaluate_original",
        evaluation("pretrain_2", score("piqa", 0.5, 0.05), score("piqa", 0.9, 0.05, headline=False, metric="acc")),
    )
    section = ablation.ablation(report.collect(trained, "tiny"))
    assert row_of(section, "piqa").startswith("piqa acc_norm | 0 | 100 | 50.0 ±5.0 | 55.0 ±5.0")
    assert section is not None
    assert "90.0" not in section.body


def test_no_number_of_the_paper_stands_beside_toy_data(trained: Ledger) -> None:
    for node in ("evaluate_original", "evaluate_enhanced"):
        toy = score("hellaswag", 0.5, 0.1, toy=True, comparable_to_paper=False, note="made")
        publish_report(trained, node, evaluation(node, toy, trained_on=("toy-hellaswag",)))
    section = ablation.ablation(report.collect(trained, "tiny"))
    assert section is not None
    assert row_of(section, "toy-hellaswag").startswith(
        "toy-hellaswag acc_norm | 0 | 100 | 50.0 ±10.0 | 50.0 ±10.0 | +0.0 ±14.1 | no"
    )
    assert "80.03" not in section.body
    assert "Table 2" not in section.body
    assert "In-domain: toy-hellaswag." in section.body
    assert "say that the machinery works" in section.body


SIDE = st.one_of(
    st.none(), st.fixed_dictionaries({"value": st.floats(0, 1), "stderr": st.one_of(st.none(), st.floats(0, 0.5))})
)


@given(SIDE, SIDE)
def test_swapping_the_sides_turns_the_sign_and_keeps_the_verdict(left: Any, right: Any) -> None:
    one, other = ablation.Pair(left, right), ablation.Pair(right, left)
    assert one.beyond_noise == other.beyond_noise
    assert (one.difference is None) == (left is None or right is None)
    if one.difference is not None:
        assert one.difference == -(other.difference or 0.0)
    if one.beyond_noise:
        assert one.difference is not None
        assert one.stderr is not None
        assert abs(one.difference) > 2 * max(left["stderr"], right["stderr"])


def test_the_ablation_as_plain_rows_is_the_same_as_on_the_page(trained: Ledger) -> None:
    rows = ablation.ablation_rows(report.collect(trained, "tiny"))
    verdict = "beyond 2 standard errors"
    assert rows[0] == {
        "suite": "zero_shot",
        "task": "hellaswag",
        "Original": "25.0 ±3.0",
        "Enhanced": "40.0 ±4.0",
        "difference": "+15.0 ±5.0",
        verdict: "yes",
    }
    assert [(row["task"], row[verdict]) for row in rows] == [
        ("hellaswag", "yes"),
        ("piqa", "no"),
        ("arc_easy", ""),
        ("average of 3", "yes"),
    ]
    trained.store.delete([f"manifests/{sha256(b'evaluate_original')}.json"])
    assert ablation.ablation_rows(report.collect(trained, "tiny")) == []


def test_the_scores_of_one_evaluation_as_plain_rows() -> None:
    found = evaluation(
        "m",
        score("piqa", 0.5, 0.05),
        score("piqa", 0.4, 0.05, headline=False, metric="acc"),
        score("mmlu", 0.25, None, in_domain=True, comparable_to_paper=False),
    )
    rows = scores.rows_of(found.model_dump(mode="json"))
    assert [list(row.values()) for row in rows] == [
        ["zero_shot", "piqa", "0", "acc_norm", "50.0", "5.0", "100", ""],
        ["zero_shot", "mmlu", "0", "acc_norm", "25.0", "", "100", "in-domain, not comparable to the paper"],
    ]
