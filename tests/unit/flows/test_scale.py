"""Scales of nodes: sums that can be worked out by hand."""

from __future__ import annotations

import pytest

from flows import scale
from flows.scale_tables import CASES, tables
from stages.core.artifacts import ArtifactManifest, FileEntry
from stages.core.resources import Resources
from stages.core.scale import Unknown, amount
from stages.dedup.spec import DedupConfig
from stages.lib.data.amounts import BYTES_A_TOKEN, STORED
from stages.pipeline import PIPELINE
from stages.quality.spec import QualityConfig
from stages.tokenize.spec import TokenizeConfig

TEXT = {"documents": 1e6, "text_bytes": 4e9, "bytes": 1.6e9, "files": 3.0}


def corpus(**changes: float) -> list[ArtifactManifest]:
    return [scale.expected(TEXT | changes)]


def test_what_an_artifact_that_is_there_holds() -> None:
    entry = FileEntry(path="a", size=7, sha256="0" * 64, object="o")
    real = ArtifactManifest(type="Documents", digest="0" * 64, facets={}, meta={"documents": 3}, files=(entry,))
    assert scale.held(real) == {"bytes": 7, "files": 1, "documents": 3}
    assert scale.held(real.reference()) == scale.held(real), "as a result says of what it read"
    assert amount([real, *corpus()], "documents") == 1e6 + 3
    assert amount([real], "bytes") == 7
    with pytest.raises(Unknown, match="text_bytes of its input"):
        amount([real], "text_bytes")


def test_the_windows_of_a_corpus() -> None:
    """4 GB of text are a billion tokens of two bytes; half of the documents are drawn; never more than asked for."""
    node, resources = PIPELINE["tokenize_short"], Resources(cpus=4, memory_gib=64)
    inputs = {"documents": corpus(), "tokenizer": [scale.expected({"bytes": 1e6})]}

    def sized(**values: object) -> scale.NodeScale:
        return scale.of_node(node, TokenizeConfig(sequence_length=1000, workers=2, **values), resources, inputs, {})  # type: ignore[arg-type]

    one = sized()
    assert one.outputs["shards"]["tokens"] == 4e9 / BYTES_A_TOKEN == 1e9
    assert one.outputs["shards"]["windows"] == 1e6
    assert (one.bytes_out, one.spilled) == (2e9, 4e9)
    assert one.bytes_in == pytest.approx(4e9 * STORED + 4e9)
    encoding = 4e9 / scale.rates()["tokenize.encode"]["rate"]
    assert encoding < one.core_seconds < 1.5 * encoding
    assert one.seconds == pytest.approx(one.core_seconds / 4)
    assert one.requests > (one.bytes_in + one.bytes_out + one.spilled) / scale.BLOCK
    assert sized(draw=((0.0, 0.5),)).bytes_out == 1e9
    assert sized(max_tokens=1000).bytes_out == 2000
    assert sized(weights=(1.0,), max_epochs=3.0).bytes_out == 6e9
    large = scale.of_node(node, TokenizeConfig(), resources, {**inputs, "documents": corpus(text_bytes=1e12)}, {})  # type: ignore[arg-type]
    assert large.spilled == 3 * large.bytes_out, "above 256 GiB windows are dealt twice"
    assert sized().disk < 2 * 1.01 * 2**30 + 1e6, "two tasks in flight, whatever the corpus"


def test_disk_is_bounded_by_tasks_where_ports_are_read_by_tasks() -> None:
    node, config = PIPELINE["quality_web"], QualityConfig(model="/m", workers=4)
    small, large = (
        scale.of_node(node, config, Resources(cpus=4), {"documents": corpus(**sizes)}, {})
        for sizes in (
            {"documents": 1e7, "text_bytes": 4e10, "bytes": 1.6e10},
            {"documents": 1e8, "text_bytes": 4e11, "bytes": 1.6e11},
        )
    )
    assert small.disk == large.disk
    assert large.core_seconds == pytest.approx(10 * small.core_seconds)
    assert large.tasks == pytest.approx(10 * small.tasks)


def test_what_is_not_known_is_said() -> None:
    node = PIPELINE["dedup_text"]
    one = scale.of_node(node, DedupConfig(), Resources(), {"sources": [scale.expected({})]}, {})
    assert one.unknown == "the documents of its input is not known"
    assert (one.seconds, one.core_seconds, one.text()) == (0.0, 0.0, "")


def test_the_network_bounds_what_many_cores_would_do_faster() -> None:
    node, config = PIPELINE["quality_web"], QualityConfig(model="/m", workers=1)
    one = scale.of_node(node, config, Resources(cpus=1000), {"documents": corpus()}, {})
    assert one.seconds == pytest.approx(one.moved / scale.NETWORK)
    assert one.seconds > one.core_seconds / 1000


def test_every_rate_has_a_source_and_every_stage_names_known_rates() -> None:
    for name, one in scale.rates().items():
        assert one["rate"] > 0, name
        assert one["source"].startswith(("measured: ", "declared: ")), name


def test_the_document_has_every_node_of_7b_and_names_what_does_not_fit() -> None:
    text = tables()
    whole = text.partition("## DCLM")[0]
    for node in PIPELINE:
        assert f"| {node.name} | " in whole
    assert "| dedup_web | " in text.partition("## DCLM")[2]
    assert all(f"## {case.title}" in text for case in CASES)
    assert "Said by the plan:" not in whole, "7b fits its machines"
