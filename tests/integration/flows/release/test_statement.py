"""The statement of provenance: what it says, that the libraries take it, and its envelope."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

from flows.release import signing, statement
from flows.release.chain import Chain, read
from stages.core.errors import InputError
from stages.core.files import file_sha256
from tests.support.bench import Bench
from tests.support.released_model import released
from tests.support.signing_keys import key_pair


@pytest.fixture
def chain(finished: Bench) -> Chain:
    return read(finished.ledger, "test", "train_2")


def test_it_leads_from_the_raw_files_to_the_released_ones(finished: Bench, chain: Chain, tmp_path: Path) -> None:
    folder = released(finished.ledger, chain, tmp_path / "Moxin-LLM")
    value = statement.load(folder / statement.FILE)
    assert {row["name"]: row["digest"]["sha256"] for row in value["subject"]} == {
        name: file_sha256(folder / name) for name in ("README.md", "model.txt")
    }
    build = value["predicate"]["buildDefinition"]
    results = finished.results()
    raw = [(n, f) for n in ("source_a", "source_b") for f in results[n].outputs["documents"].files]
    listed = {row["name"]: row["digest"] for row in build["resolvedDependencies"]}
    for node, file in raw:
        assert listed[f"{node}.documents/{file.path}"] == {"sha256": file.sha256}
    assert listed["sources of stage probe_train"] == {"sha256": results["train_2"].code.source_digest}
    assert [row["node"] for row in build["internalParameters"]["results"]][-1] == "train_2"
    assert len(build["internalParameters"]["results"]) == 6
    assert value["predicate"]["runDetails"]["metadata"]["invocationId"] == "run-1"


def test_hub_data_is_named_with_its_commit_and_licence(chain: Chain) -> None:
    revision = "a" * 40
    sources = [{"data_set": "allenai/tulu-3-sft-mixture", "revision": revision, "license": "odc-by", "taken": 3}]
    config = {"web": [{"uri": f"hf://org/set@{revision}/part.parquet", "license": "CC-BY-4.0"}, {"uri": "file:///x"}]}
    first = chain.links[0]
    result = first.result.model_copy(update={"stats": {"sources": sources}, "config": config})
    links = (type(first)(result, first.manifest_sha256), *chain.links[1:])
    value = statement.make(Chain("train_2", "test", links), "Moxin-LLM", {"model.txt": "0" * 64})
    rows = {row.get("uri"): row for row in value["predicate"]["buildDefinition"]["resolvedDependencies"]}
    tulu = rows["hf://allenai/tulu-3-sft-mixture"]
    assert (tulu["digest"], tulu["annotations"]) == ({"gitCommit": revision}, {"license": "odc-by"})
    assert rows[f"hf://org/set@{revision}/part.parquet"]["digest"] == {"gitCommit": revision}
    assert not any("file:" in str(uri) for uri in rows), "no path of a machine"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda value: value.update(_type="https://in-toto.io/Statement/v0.1"), "Wrong statement type"),
        (lambda value: value["subject"].clear(), "At least one subject"),
        (lambda value: value["subject"][0].pop("digest"), "At least one digest"),
        (lambda value: value.update(predicateType="https://slsa.dev/provenance/v0.2"), "its predicate is"),
        (lambda value: value["predicate"]["buildDefinition"].update(builder={}), "builder"),
        (lambda value: value["predicate"]["runDetails"]["metadata"].update(startedOn="yesterday"), "startedOn"),
    ],
)
def test_what_is_no_statement_is_refused(chain: Chain, tmp_path: Path, change: Any, why: str) -> None:
    value = statement.make(chain, "Moxin-LLM", {"model.txt": "0" * 64})
    change(value)
    with pytest.raises(ValueError, match=why):
        statement.validate(value)
    (tmp_path / statement.FILE).write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"provenance\.intoto\.json is no in-toto statement"):
        statement.load(tmp_path / statement.FILE)


def test_the_envelope_is_dsse_and_holds_the_statement(finished: Bench, chain: Chain, tmp_path: Path) -> None:
    private, public = key_pair(tmp_path / "keys")
    _, other = key_pair(tmp_path / "keys", "other")
    folder = released(finished.ledger, chain, tmp_path / "Moxin-LLM", private)
    envelope = folder / statement.ENVELOPE
    assert statement.opened(envelope, public) == (folder / statement.FILE).read_bytes()
    with pytest.raises(InputError, match="not of this key"):
        statement.opened(envelope, other)
    rows = json.loads(envelope.read_text())
    key = SSlibKey.from_crypto(signing.public_key(public), keyid=rows["signatures"][0]["keyid"])
    assert Envelope.from_dict(json.loads(envelope.read_text())).verify([key], threshold=1), (
        "an implementation of others agrees"
    )
    body = bytearray(base64.b64decode(rows["payload"]))
    body[100] ^= 1
    envelope.write_text(json.dumps(rows | {"payload": base64.b64encode(body).decode()}))
    with pytest.raises(InputError, match="not of this statement"):
        statement.opened(envelope, public)
    envelope.write_text(envelope.read_text()[:-40])
    with pytest.raises(InputError, match="is no DSSE envelope"):
        statement.opened(envelope, public)
