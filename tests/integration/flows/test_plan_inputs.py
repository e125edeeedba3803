"""The plan and the inputs of its nodes: facets that must agree, and what a configuration does not read."""

from __future__ import annotations

from pathlib import Path

import pytest
from stages.probe_shards.spec import Shards
from stages.probe_source.spec import Source
from stages.probe_tokenizer.spec import Vocabulary
from stages.probe_train.spec import Train

from flows import plan as plans
from flows import profiles
from flows.plan import State, make_plan
from stages.core.artifacts import ArtifactManifest
from stages.core.errors import ConfigError
from stages.core.graph import Pipeline
from stages.core.ledger import Ledger
from stages.core.messages import Attempt, CodeRef, StageResult
from stages.pipeline import PIPELINE
from tests.support.plan_bench import PIPE, Bench

FROM_THE_HUB = ("capability", "instructions_tulu", "instructions_infinity", "preferences_tulu", "preferences_infinity")


def crossed() -> Pipeline:
    """A model that is to be trained on shards of one vocabulary with the tokenizer of another."""
    source_a, source_b = Source(name="source_a"), Source(name="source_b")
    vocabulary_a = Vocabulary(name="vocabulary_a", documents=[source_a.documents])
    vocabulary_b = Vocabulary(name="vocabulary_b", documents=[source_b.documents])
    shards = Shards(name="shards", documents=[source_a.documents], tokenizer=vocabulary_a.tokenizer)
    train = Train(name="train_1", shards=shards.shards, tokenizer=vocabulary_b.tokenizer)
    return Pipeline([source_a, source_b, vocabulary_a, vocabulary_b, shards, train])


def test_two_tokenizers_are_refused_as_soon_as_their_digests_are_known(ledger: Ledger, tmp_path: Path) -> None:
    bench = Bench(ledger, tmp_path, crossed())
    bench.plan()  # both have 100 entries, and no digest yet: nothing to compare
    bench.run(until="shards")
    digests = {}
    for node in ("vocabulary_a", "vocabulary_b"):
        found = ledger.manifest(bench.keys()[node])
        assert found is not None
        digests[node] = found[0].outputs["tokenizer"].facets["tokenizer_digest"]
    with pytest.raises(ConfigError) as caught:
        bench.plan()
    assert (
        str(caught.value)
        == f"node train_1: its inputs disagree on tokenizer_digest: shards has {digests['vocabulary_a']}, "
        f"vocabulary_b has {digests['vocabulary_b']}; wire both to the same origin"
    )
    with pytest.raises(ConfigError, match="disagree on tokenizer_digest"):
        bench.run()
    assert set(bench.keys()) == {"source_a", "source_b", "vocabulary_a", "vocabulary_b", "shards"}


def test_two_sizes_of_vocabulary_are_refused_before_anything_runs(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="node train_1: its inputs disagree on vocab_size: shards has 100, vocabulary_b has 200"
    ):
        Bench(ledger, tmp_path, crossed()).plan("vocabulary_b.vocab_size=200")


def test_a_context_that_does_not_fit_the_shards_is_refused_before_anything_runs(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Bench(ledger, tmp_path).plan("train_1.sequence_length=32")
    assert (
        str(caught.value)
        == "node train_1: sequence_length is 32, but its input shards from shards has sequence_length 16; "
        "set train_1.sequence_length = 16, or change shards"
    )


def documents_of(node: str, digest: str) -> StageResult:
    """The result of an ingest, as far as a key needs it."""
    manifest = ArtifactManifest(type="Documents", digest=digest * 64, facets={}, files=())
    attempt = Attempt(
        run_id="r",
        epoch=1,
        started_at="",
        ended_at="",
        wall_seconds=0,
        cpu_seconds=0,
        peak_rss_bytes=0,
        bytes_in=0,
        bytes_out=0,
    )
    code = CodeRef(source_digest="0")
    return StageResult(
        key=digest * 64,
        node=node,
        stage="ingest",
        revision=1,
        config={},
        identity={},
        inputs={},
        outputs={"documents": manifest},
        code=code,
        attempt=attempt,
    )


@pytest.mark.parametrize("name", FROM_THE_HUB)
@pytest.mark.parametrize("profile", ["small", "7b", "tiny"])
def test_data_of_the_hub_has_no_corpus_in_its_key(ledger: Ledger, name: str, profile: str) -> None:
    values = profiles.load(profile, PIPELINE)
    keys = {
        plans.resolve(
            PIPELINE[name], values, ledger, {node: documents_of(node, digest) for node in ("ingest_text", "ingest_web")}
        ).key
        for digest in "ab"
    }
    assert len(keys) == (2 if profile == "tiny" else 1), "tiny makes its data of the documents"


def test_nothing_waits_for_what_is_not_read(ledger: Ledger) -> None:
    values = profiles.load("7b", PIPELINE)
    found = {p.node.name: p for p in make_plan(PIPELINE, values, ledger)}
    assert {name: found[name].state for name in (*FROM_THE_HUB, "tokenizer")} == dict.fromkeys(
        (*FROM_THE_HUB, "tokenizer"), State.RUN
    )
    assert found["capability"].resolved is not None
    assert found["capability"].resolved.inputs == {"documents": ()}
    assert [p.node.name for p in make_plan(PIPELINE, values, ledger, "+instructions_tulu")] == ["instructions_tulu"]
    assert found["reasoning_traces"].node.parents == ("problems",), (
        "problems that are reserved for tests are read, whatever the origin"
    )


def test_a_port_that_is_not_there_cannot_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vocabulary, "unread", classmethod(lambda cls, config: ("document",)))
    with pytest.raises(TypeError, match="stage probe_tokenizer has no input document"):
        PIPE["vocabulary"].under(None)
