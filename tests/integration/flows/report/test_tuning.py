"""The report's part on fine-tuning: what the manifests' effects say, hostile samples as text, nothing for what never
ran.
"""

from __future__ import annotations

from flows import report
from flows.report import tuning
from stages.core.ledger import Ledger
from stages.lib.formats.paired_eval import as_stats, effect
from tests.support.report_pages import HOSTILE, Page, publish


def test_effects_curves_and_samples_are_shown(ledger: Ledger) -> None:
    better = effect(
        "answer_loss", [5.0, 4.0, 6.0], [1.0, 1.5, 2.0], better="lower", unit="nats a token", weights=[2, 2, 2]
    )
    noise = effect("pass_at_1", [0.25, 0.5], [0.5, 0.25], better="higher", trials=4)
    sample = {"prompt": f"user: {HOSTILE}", "reference": "4", "before": "x", "after": HOSTILE}
    gap = {"not_measured": {"child: problems": f"EngineError: vllm ended {HOSTILE}"}}
    publish(
        ledger,
        "sft_tulu",
        stats=as_stats([better]) | gap | {"samples": [sample]},
        metrics=[{"step": s, "loss": 3.0 - s} for s in (1, 2)],
    )
    publish(
        ledger,
        "grpo_areal",
        stats=as_stats([noise]),
        metrics=[{"step": 1, "accuracy": 0.1, "kl": 0.0}, {"step": 2, "accuracy": 0.2, "kl": 0.1}],
    )
    data = report.collect(ledger, "tiny")
    section = tuning.effects(data)
    assert section is not None
    page = Page(str(section.body))
    assert {a.get("type") for tag, a in page.elements if tag == "script"} == {"application/json"}, "numbers alone"
    assert "answer loss (nats a token)" in page.text
    assert "-1.7500" in page.text
    assert "shown" in page.text
    assert "within noise" in page.text
    assert "sft_tulu: not measured: child: problems (EngineError: vllm ended" in page.text
    assert HOSTILE in page.text
    assert str(section.body).count("<svg") == 3
    assert tuning.summary(data)[0].startswith("sft_tulu: answer loss 2.500 -> 0.750 (-1.750 +- ")


def test_a_damaged_effect_does_not_take_the_page_with_it(ledger: Ledger) -> None:
    publish(ledger, "dpo_tulu", stats={"effects": [{"metric": 1}]})
    data = report.collect(ledger, "tiny")
    assert tuning.summary(data) == []
    assert tuning.effects(data) is not None


def test_nothing_ran(ledger: Ledger) -> None:
    section = tuning.effects(report.collect(ledger, "tiny"))
    assert section is not None
    assert "Nothing has been fine-tuned yet" in str(section.body)
