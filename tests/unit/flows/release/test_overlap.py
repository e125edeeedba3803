"""Contamination on a card: of this model's own data alone, with the digests that it is from."""

from __future__ import annotations

from typing import Any

from flows import family
from flows.release import overlap
from flows.release.lineage import Lineage
from stages.core.messages import StageResult
from stages.core.records import NodeRecord
from tests.support.overlaps import Results, pipeline
from tests.support.report_pages import publish
from tests.support.report_results import manifest

SCANNED = "e" * 64
"""What tests.support.overlaps says of the corpus that was looked through."""


class Stored(Results):
    """Results that are found by their nodes' names."""

    def manifest(self, key: str, listed: bool = False) -> tuple[StageResult, str] | None:
        return (self.results[key], "tag") if key in self.results else None

    def records(self) -> dict[str, NodeRecord]:
        return {name: NodeRecord(node=name, key=name, run_id="r", at="now") for name in self.results}


def notes(stored: Stored, digest: str = SCANNED, evaluated: bool = True) -> overlap.Notes:
    ledger: Any = stored
    corpus = manifest("Documents").model_copy(update={"digest": digest})
    learned = publish(ledger, "dedup_text", outputs={"documents": corpus})
    lineage = Lineage(family.load()["pretrain_2"], "tiny", "model", {"dedup_text": learned})
    scores = {"evaluate_original": "5" * 64} if evaluated else {}
    return overlap.read(ledger, lineage, scores, stored.records(), pipeline())


def measured() -> Stored:
    stored = Stored()
    stored.overlap()
    stored.results["contamination"] = stored.results["contamination"].model_copy(update={
        "outputs": {"overlap": stored.results["contamination"].outputs["out"]}, "node": "contamination",
    })  # fmt: skip
    stored.evaluation("evaluate_original", "pretrain_2", [1.0, 0.0, 1.0, 0.0])
    return stored


def test_counts_and_scores_with_the_digests_that_they_are_from() -> None:
    stored = measured()
    found = notes(stored)
    digest = stored.results["contamination"].outputs["overlap"].digest
    assert found.digests == {"contamination": digest}
    assert f"Items are counted in `{digest[:12]}`, scores are of `{'5' * 12}`." in found.lines
    (row,) = [line for line in found.lines if line.startswith("| toy-piqa")]
    assert row == "| toy-piqa | 0 | 4 | 1 | 1 | 0 | 50.0 | 0.0 | 100.0 |"


def test_an_overlap_with_other_data_says_nothing_of_the_model() -> None:
    found = notes(measured(), digest="d" * 64)
    assert found.digests == {}
    assert found.lines == (
        "Not measured on this model's data: the overlap is of another dedup_text."
        " `moxin run --profile tiny --select contamination` does it.",
    )


def test_scores_of_other_results_of_the_model_are_not_taken() -> None:
    found = notes(measured(), evaluated=False)
    assert not [line for line in found.lines if line.startswith("| toy-")]
    assert found.lines[0].startswith("Not measured.")


def test_what_was_not_measured_says_how_it_is() -> None:
    stored = Stored()
    stored.evaluation("evaluate_original", "pretrain_2", [1.0, 0.0, 1.0, 0.0])
    assert notes(stored).lines == ("Not measured. `moxin run --profile tiny --select contamination` does it.",)
    assert notes(stored).digests == {}
