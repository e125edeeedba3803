"""Weights and data of others become results that a run takes; what does not fit is published nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flows import export, outside, profiles
from flows.plan import State, make_plan
from stages.core.errors import ConfigError, InputError
from stages.core.ledger import Ledger
from stages.core.messages import StageResult
from stages.lib.outside import program
from stages.pipeline import PIPELINE
from tests.support import outside_model
from tests.support.family_ledger import artifact
from tests.support.loopback_hub import Hub, Repository
from tests.support.report_pages import publish

CONFIGS = profiles.load("tiny", PIPELINE).configs


def _adopt(ledger: Ledger, node: str, place: str | Path, work: Path) -> outside.Adopted:
    return outside.adopt(ledger, PIPELINE[node], CONFIGS[node], str(place), work)


def _objects(ledger: Ledger) -> list[str]:
    return [row.key for row in ledger.store.list("") if not row.key.startswith("leases/")]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program's work is done here: its start is paid for once."""
    monkeypatch.setattr(outside, "_ask", program.adopted)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return outside_model.write(tmp_path_factory.mktemp("outside") / "base")


def test_a_run_begins_behind_a_model_of_others(ledger: Ledger, folder: Path, tmp_path: Path) -> None:
    done = _adopt(ledger, "pretrain_3", folder, tmp_path)
    model = done.result.outputs["model"]
    assert done.new
    assert (done.result.stage, done.result.config["place"]) == ("adopt", "folder base")
    assert done.result.config["license"] == {"model": "apache-2.0"}
    assert model.facets["dtype"] == "bfloat16"
    stored = {entry.path: ledger.store.get(entry.object) for entry in ledger.entries(model)}
    weights = stored["model.safetensors"]
    assert weights is not None
    assert weights[0] == (folder / "model.safetensors").read_bytes()
    before = _objects(ledger)
    again = _adopt(ledger, "pretrain_3", folder, tmp_path)
    assert (again.new, again.result) == (False, done.result)
    assert _objects(ledger) == before

    values = profiles.load("tiny", PIPELINE, [f"adopt.pretrain_3={done.result.key[:12]}"])
    rows = {row.node.name: row for row in make_plan(PIPELINE, values, ledger, "+sft_tulu", force=True)}
    assert list(rows) == ["collect", "ingest_text", "pretrain_3", "instructions_tulu", "sft_tulu"]
    assert (rows["pretrain_3"].state, rows["pretrain_3"].will_run) == (State.CACHED, False)
    assert rows["pretrain_3"].reason == "adopted from folder base"
    assert rows["sft_tulu"].facets["model"]["tokenizer_digest"] == model.facets["tokenizer_digest"]
    alone = make_plan(PIPELINE, values, ledger, "sft_tulu,instructions_tulu")
    assert {row.node.name for row in alone} == {"sft_tulu", "instructions_tulu"}


@pytest.mark.usefixtures("in_process")
def test_what_settings_name_must_fit(ledger: Ledger, folder: Path, tmp_path: Path) -> None:
    key = _adopt(ledger, "pretrain_2", folder, tmp_path).result.key

    def refused(*settings: str, select: str = "pretrain_3") -> str:
        with pytest.raises(ConfigError) as error:
            make_plan(PIPELINE, profiles.load("tiny", PIPELINE, settings), ledger, select)
        return str(error.value)

    assert "this is a result of pretrain_2: adopt it for pretrain_3" in refused(f"adopt.pretrain_3={key}")
    assert refused("adopt.pretrain_3=mistrul").startswith("no tag 'mistrul'")
    assert "did you mean 'pretrain_3'?" in refused("adopt.pretrain_4=a")
    # trained on one tokenizer, and now on shards of another
    outside_tokenizer = artifact(ledger, "tokenizer", "tokenizer", "Tokenizer", {"tokenizer.json": b"{}"})
    facets: dict[str, str | int] = {"tokenizer_digest": "another", "vocab_size": 260}
    other = publish(ledger, "tokenizer", outputs={"tokenizer": outside_tokenizer.model_copy(update={"facets": facets})})
    said = refused(f"adopt.pretrain_2={key}", f"adopt.tokenizer={other.key}", select="+pretrain_3")
    assert "disagree on tokenizer_digest" in said


def test_nothing_is_published_of_what_does_not_fit(
    ledger: Ledger, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"wrong: wrong tokenizer: tokenizer\.json has 261 entries"):
        _adopt(ledger, "pretrain_3", outside_model.write(tmp_path / "wrong", pieces=261), tmp_path / "work")
    monkeypatch.setattr(outside, "_ask", program.adopted)
    with pytest.raises(ConfigError, match="there is no such folder"):
        _adopt(ledger, "pretrain_3", tmp_path / "nowhere", tmp_path / "work")
    with pytest.raises(InputError, match="there is no folder train in it: it needs one for each of train, heldout"):
        _adopt(ledger, "instructions_tulu", folder, tmp_path / "work")
    with pytest.raises(ConfigError, match="report is of type EvalReport, which is adopted from a folder"):
        _adopt(ledger, "code_dpo_tulu", folder, tmp_path / "work")
    assert _objects(ledger) == []


@pytest.mark.usefixtures("in_process")
def test_what_was_exported_comes_back_as_it_was(ledger: Ledger, tmp_path: Path) -> None:
    shards = artifact(ledger, "tokenize_short", "tokenize", "TokenShards", {"index.json": b"{}"}, {"windows": 3})
    result: StageResult = publish(ledger, "tokenize_short", outputs={"shards": shards})
    export.write(ledger, result, "", tmp_path / "shards")
    back = _adopt(ledger, "tokenize_short", tmp_path / "shards", tmp_path / "work").result
    assert back.outputs["shards"].digest == shards.digest
    assert back.outputs["shards"].meta == shards.meta
    (tmp_path / "shards" / "index.json").write_bytes(b"{ }")
    with pytest.raises(InputError, match=r"index\.json is not what was exported"):
        _adopt(ledger, "tokenize_short", tmp_path / "shards", tmp_path / "work")


def test_a_repository_of_the_hub_and_a_prefix_of_a_store(
    ledger: Ledger, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with Hub({"owner/base": Repository("c" * 40, files)}) as hub:
        hub.enter(monkeypatch, tmp_path / "hf")
        of_hub = _adopt(ledger, "pretrain_3", "hf://datasets/owner/base@main", tmp_path).result
        asked = " ".join(hub.repositories["owner/base"].asked)
        as_model = _adopt(ledger, "pretrain_3", "hf://owner/base", tmp_path).result
    assert as_model.config["place"] == f"hf://owner/base@{'c' * 40}"
    assert as_model.outputs["model"].digest == of_hub.outputs["model"].digest
    assert of_hub.config["place"] == f"hf://datasets/owner/base@{'c' * 40}"
    assert of_hub.config["source_revision"] == "c" * 40
    assert "model.safetensors" in asked
    assert "pytorch_model.bin" not in asked
    address = ledger.store.address
    for name, value in files.items():
        ledger.store.put(f"elsewhere/{name}", value)
    monkeypatch.setenv("MOXIN_SOURCE_S3_ENDPOINT", str(address.endpoint))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"MOXIN_SOURCE_{name}", os.environ.get(name, "any"))
    place = "/".join(filter(None, ["s3:/", address.bucket, address.prefix.strip("/"), "elsewhere"]))
    of_store = _adopt(ledger, "pretrain_3", place, tmp_path).result
    assert of_store.config["place"] == place
    assert of_store.outputs["model"].digest == of_hub.outputs["model"].digest
