"""One table of models and benchmarks."""

from __future__ import annotations

from typing import Any

import pytest

from flows.report import family_table


def row(task: str, value: float, generation: dict[str, Any] | None, metric: str = "exact_match", **more: Any) -> Any:
    defaults = {"num_fewshot": 5, "stderr": 0.01, "headline": True, "repeats": 1, "toy": False, "value": value}
    return defaults | {"task": task, "generation": generation, "metric": metric} | more


GREEDY = {"do_sample": False, "temperature": 0.0}
SAMPLED = {"do_sample": True, "temperature": 0.8, "top_p": 0.95}


@pytest.mark.parametrize(
    ("scored", "words"),
    [
        (row("a", 1, None, "acc_norm"), "choice by likelihood"),
        (row("a", 1, None), "not recorded"),
        (row("a", 1, GREEDY), "greedy"),
        (row("a", 1, SAMPLED, repeats=10), "sampled, temperature 0.8, top-p 0.95, 10 answers"),
        (row("a", 1, {"do_sample": True}), "sampled, temperature 1"),
    ],
)
def test_decoding_is_named(scored: Any, words: str) -> None:
    assert family_table.decoding(scored) == words


def test_models_stand_in_one_table_and_ways_to_ask_in_columns_of_their_own() -> None:
    reports = {
        "evaluate_original": [row("gsm8k", 0.25, GREEDY), row("hidden", 0.9, None, headline=False)],
        "evaluate_enhanced": [row("gsm8k", 0.5, SAMPLED), row("piqa", 0.75, None, "acc", toy=True)],
    }
    nodes = [{"name": name, "reports": {"report": {"results": rows}}} for name, rows in reports.items()]
    section = family_table.section({"nodes": nodes})
    assert section is not None
    body = section.body
    assert body.count("</th>") == 4
    for words in ("25.0", "50.0", "75.0", "toy-piqa", "5 shots, greedy", "5 shots, sampled, temperature 0.8"):
        assert words in body
    assert "hidden" not in body
    assert body.count('class="none"') == 3
    assert family_table.section({"nodes": []}) is None
