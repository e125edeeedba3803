"""`moxin verify`: a chain that holds is said to hold, and one byte changed anywhere in it is found and named."""

from __future__ import annotations

import pytest

from flows.release import checks
from flows.release.chain import read
from stages.core.errors import ConfigError, InputError
from stages.core.keys import artifact_digest
from stages.core.ledger import DIGESTS, attempt_prefix
from tests.support.bench import PIPE, Bench
from tests.support.probe_pipeline import run_nodes

MODEL = "train_2"


def flip(bench: Bench, name: str, at: int = -1) -> None:
    """Change one bit of an object, and nothing else: the last byte of its middle, or the one at a place."""
    stored = bench.ledger.store.get(name)
    assert stored is not None, name
    body = bytearray(stored[0])
    body[len(body) // 2 if at < 0 else at] ^= 1
    bench.ledger.store.put(name, bytes(body))


def broken(bench: Bench, deep: bool = True) -> list[str]:
    return [fault.line for fault in checks.verify(bench.ledger, "test", MODEL, deep).faults]


def test_a_chain_that_holds(finished: Bench) -> None:
    verdict = checks.verify(finished.ledger, "test", MODEL)
    assert (verdict.faults, verdict.notes) == ([], [])
    assert [link.node for link in verdict.chain.links][-1] == MODEL
    assert {link.node for link in verdict.chain.links} == {node.name for node in PIPE}
    results = finished.results()
    files = {f.object for r in results.values() for m in r.outputs.values() for f in m.files}
    assert verdict.files == len(files)
    assert verdict.bytes == sum(m.size for r in results.values() for m in r.outputs.values())
    order = [link.node for link in verdict.chain.links]
    for link in verdict.chain.links:
        assert all(order.index(ref.node) < order.index(link.node) for _, ref in link.refs)


@pytest.mark.parametrize("node", ["source_a", "vocabulary", "shards", "train_1", "train_2"])
def test_a_byte_of_a_file_anywhere_in_the_chain(finished: Bench, node: str) -> None:
    (port, manifest), *_ = finished.results()[node].outputs.items()
    flip(finished, manifest.files[0].object)
    assert broken(finished, deep=False) == [], "names and sizes are right"
    (line,) = broken(finished)
    assert line.startswith(f"{node}: output {port}, file {manifest.files[0].path}: ")
    assert manifest.files[0].sha256 in line


@pytest.mark.parametrize(
    "record", ["manifests/{key}.json", "attempts/{key}/000001.json", "nodes/test/train_2.json", "{prefix}DIGESTS.json"]
)
def test_every_byte_of_a_record(finished: Bench, record: str) -> None:
    """Wherever in the record the byte is; what of it is not JSON any more cannot be read, which is said as well."""
    result = finished.results()[MODEL]
    name = record.format(key=result.key, prefix=attempt_prefix(result))
    stored = finished.ledger.store.get(name)
    assert stored is not None
    for at in range(0, len(stored[0]), max(1, len(stored[0]) // 7)):
        flip(finished, name, at)
        lines = broken(finished)
        place = stored[0][max(0, at - 20) : at + 20]
        assert lines, f"byte {at} of {name}: {place!r}"
        named = [line for line in lines if line.startswith(f"{MODEL}: ")]
        assert any("record " in line or "metric rows" in line for line in named), lines
        finished.ledger.store.put(name, stored[0])
    assert broken(finished) == []


def test_a_byte_of_the_record_of_a_node_far_up(finished: Bench) -> None:
    result = finished.results()["source_b"]
    flip(finished, f"manifests/{result.key}.json", len(result.model_dump_json()) // 3)
    lines = broken(finished)
    assert lines
    assert lines[0].startswith(f"source_b: record manifests/{result.key}.json: ")


def test_a_byte_of_the_metric_rows(finished: Bench) -> None:
    result = finished.results()["train_1"]
    assert result.metrics_object
    flip(finished, result.metrics_object)
    (line,) = broken(finished)
    assert line.startswith("train_1: metric rows: ")


def test_a_record_that_was_changed_and_its_digest_with_it_still_has_the_wrong_key(finished: Bench) -> None:
    result = finished.results()["train_1"]
    other = result.model_copy(update={"identity": result.identity | {"learning_rate": 0.2}})
    body = other.model_dump_json().encode()
    finished.ledger.store.put(f"manifests/{result.key}.json", body)
    prefix = attempt_prefix(result)
    finished.ledger.store.delete([prefix + DIGESTS])
    lines = broken(finished)
    assert lines[0].startswith(f"train_1: key {result.key}: ")
    assert "train_1: setting learning_rate: the key was made with 0.2, it ran with 0.1" in lines


def test_an_input_that_its_producer_does_not_have_any_more(finished: Bench) -> None:
    """A forced run gave other bytes under the same key: what was made from the former ones is not reproducible now."""
    before = finished.results()["source_a"].outputs["documents"].digest
    result = finished.results()["source_a"]
    entry = result.outputs["documents"].files[0].model_copy(update={"sha256": "1" * 64})
    digest = artifact_digest("Documents", {}, [entry])
    output = result.outputs["documents"].model_copy(update={"files": (entry,), "digest": digest})
    other = result.model_copy(update={"outputs": {"documents": output}})
    finished.ledger.store.put(f"manifests/{result.key}.json", other.model_dump_json().encode())
    finished.ledger.store.delete([attempt_prefix(result) + DIGESTS])
    line = f"it read {before}, and source_a has {digest} now"
    assert f"shards: input documents[0] from source_a.documents: {line}" in broken(finished)


def test_a_result_that_is_gone(finished: Bench) -> None:
    result = finished.results()["source_a"]
    finished.ledger.store.delete([f"manifests/{result.key}.json"])
    assert f"source_a: record manifests/{result.key}.json: the result of source_a is not in the store" in broken(
        finished
    )
    with pytest.raises(InputError, match="source_a: record manifests"):
        read(finished.ledger, "test", MODEL)


def test_a_lost_object_is_named_without_reading(finished: Bench) -> None:
    entry = finished.results()["shards"].outputs["shards"].files[0]
    finished.ledger.store.delete([entry.object])
    (line,) = broken(finished, deep=False)
    assert line.startswith(f"shards: output shards, file {entry.path}: ")
    assert len(broken(finished)) == 1


def test_what_does_not_lead_to_the_model_is_not_its_chains_business(finished: Bench) -> None:
    flip(finished, finished.results()["train_2"].outputs["model"].files[0].object)
    assert checks.verify(finished.ledger, "test", "train_1").faults == []


def test_results_of_before_are_told_and_not_refused(finished: Bench) -> None:
    for result in finished.results().values():
        finished.ledger.store.delete([attempt_prefix(result) + DIGESTS])
    verdict = checks.verify(finished.ledger, "test", MODEL)
    assert verdict.faults == []
    assert "6 of 6 results are of before" in verdict.notes[0]


def test_a_node_without_a_result(finished: Bench) -> None:
    with pytest.raises(ConfigError, match="node train_9 has no result in profile 'test' yet"):
        checks.verify(finished.ledger, "test", "train_9")
    chain = read(finished.ledger, "test", MODEL)
    with pytest.raises(ConfigError, match="train_2 does not follow from 'evaluate'; it follows from: source_a"):
        checks.require_node(chain, "evaluate")


def test_a_resumed_run_keeps_the_chain(finished: Bench) -> None:
    run_nodes(finished.begin(select="train_1", force=True), PIPE)
    assert broken(finished) == []
