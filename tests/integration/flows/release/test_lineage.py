"""What a model was made from, and what cannot be released."""

from __future__ import annotations

import pytest

from flows import family
from flows.release import lineage
from stages.core.errors import ConfigError
from stages.core.ledger import Ledger
from tests.support.family_ledger import artifact, publish_family, republish

FAMILY = family.load()


def trace(ledger: Ledger, node: str = "pretrain_2") -> lineage.Lineage:
    return lineage.trace(ledger, "tiny", FAMILY[node], ledger.nodes("tiny"))


def test_a_lineage_goes_back_to_the_raw_sources_parents_first(ledger: Ledger) -> None:
    made = publish_family(ledger)
    found = trace(ledger, "sft_tulu")
    assert list(found.results) == [
        "collect", "ingest_text", "dedup_text", "tokenizer", "pretrain_2", "instructions_tulu", "sft_tulu",
    ]  # fmt: skip
    assert [result.node for result in found.training] == ["pretrain_2", "sft_tulu"]
    assert [result.node for result in found.corpora] == ["ingest_text", "dedup_text", "instructions_tulu"]
    assert found.artifact == made["sft_tulu"].outputs["model"]
    assert found.name == "Moxin-132-SFT"
    assert found.toy
    assert found.drifted == []


@pytest.mark.parametrize(
    ("count", "name"),
    [
        (8_114_180_096, "Moxin-7B-LLM"),
        (None, "Moxin-7B-LLM"),
        (1_262_720, "Moxin-1.3M-LLM"),
        (124_600_000, "Moxin-125M-LLM"),
        (99_700_000, "Moxin-100M-LLM"),
        (13_000_000_000, "Moxin-13B-LLM"),
        (640, "Moxin-640-LLM"),
    ],
)
def test_a_release_never_has_the_papers_size_in_its_name_but_by_right(count: int | None, name: str) -> None:
    assert lineage.sized("Moxin-7B-LLM", count) == name


def test_a_model_that_has_not_run_is_refused_with_the_command(ledger: Ledger) -> None:
    with pytest.raises(ConfigError, match="node pretrain_2 has no result in profile 'tiny': run 'moxin run --profile"):
        trace(ledger)
    publish_family(ledger)
    with pytest.raises(ConfigError, match="Moxin-7B-Enhanced: node pretrain_3 has no result"):
        lineage.trace_all(ledger, "tiny", FAMILY, ["pretrain_2", "pretrain_3"])


def test_a_model_of_another_corpus_than_the_newest_is_refused(ledger: Ledger) -> None:
    made = publish_family(ledger)
    newer = artifact(ledger, "dedup_text", "newer", "Documents", {"part-00000.parquet": b"other"})
    republish(ledger, made["dedup_text"], "again", outputs={"documents": newer})
    with pytest.raises(ConfigError, match="tokenizer was made from another result of dedup_text than the newest; run"):
        trace(ledger)


def test_a_rerun_that_made_the_same_bytes_changes_nothing(ledger: Ledger) -> None:
    made = publish_family(ledger)
    republish(ledger, made["dedup_text"], "again")
    assert trace(ledger).results["dedup_text"].key == made["dedup_text"].key


def test_a_model_of_two_lineages_is_refused_naming_both(ledger: Ledger) -> None:
    made = publish_family(ledger)
    other = artifact(ledger, "pretrain_2", "other", "Model", {"model.safetensors": b"other"})
    second = republish(ledger, made["pretrain_2"], "second", outputs={"model": other})
    pairs = made["instructions_tulu"]
    ref = made["sft_tulu"].inputs["parent"][0]
    both = {"parent": (ref, ref.model_copy(update={"key": second.key, "manifest": other}))}
    republish(ledger, made["sft_tulu"], "both", inputs=both)
    message = f"it was made from two results of pretrain_2: {other.digest[:12]} .read by sft_tulu. and"
    with pytest.raises(ConfigError, match=message):
        trace(ledger, "sft_tulu")
    assert pairs.node not in both


def test_what_is_gone_or_lost_is_refused(ledger: Ledger) -> None:
    made = publish_family(ledger)
    weights = next(f for f in made["pretrain_2"].outputs["model"].files if f.path == "model.safetensors")
    ledger.store.delete([weights.object])
    with pytest.raises(ConfigError, match="1 objects of pretrain_2 are lost or damaged"):
        trace(ledger)
    ledger.store.delete([f"manifests/{made['ingest_text'].key}.json"])
    with pytest.raises(ConfigError, match="of ingest_text is gone from the store"):
        trace(ledger)
