"""What of a model is open, from what is there: each component appears when its thing does, and not before."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from flows.family import FamilyModel
from flows.release import mof_classes, mof_evidence
from flows.release.chain import Chain
from flows.release.mof_evidence import Evidence
from stages.core.errors import InputError
from stages.core.messages import StageResult
from tests.support.model_chain import artifact, chain_of, result

MODEL = FamilyModel(node="pretrain_3", name="Moxin-7B-Enhanced", description="x", license="Apache-2.0")
REVISION = "a" * 40
TEXT = {"type": "string"}
SCHEMA = {
    "type": "object",
    "required": ["framework", "release"],
    "properties": {
        "framework": {"required": ["name", "version", "date"]},
        "release": {
            "required": ["name", "license", "producer", "components"],
            "properties": {
                "name": {"type": "string", "minLength": 1},
                "version": TEXT,
                "date": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\d$"},
                "type": {"enum": ["language", "multimodal"]},
                "architecture": {"const": "transformer decoder"},
                "treatment": {"enum": ["pre-trained", "instruct fine-tuned", "chat fine-tuned"]},
                "license": {"type": "object"},
                "components": {
                    "type": "array",
                    "maxItems": 17,
                    "items": {"type": "object", "additionalProperties": TEXT},
                },
                **dict.fromkeys(("origin", "producer", "contact"), TEXT),
            },
        },
    },
}
"""What the schema of the framework's tool asks of a mof.yml (schema/mof_schema.json, as far as ours uses it)."""


def chain(origin: str = "hub") -> Chain:
    """Raw text, packed, two phases of training."""
    web = [{"uri": f"hf://org/web@{REVISION}/a.parquet", "license": "odc-by"}]
    config: dict[str, Any] = {"origin": "machine"} if origin == "machine" else {"origin": "listing", "web": web}
    collect = result("collect", "collect", {"web": artifact("RawFiles", listing__jsonl="{}")}, config=config)
    ingest = result("ingest_web", "ingest", {"documents": artifact("Documents", part__parquet="x")}, [(collect, "web")])
    first = result("pretrain_1", "pretrain", {"model": artifact("Model", a__txt="1")}, [(ingest, "documents")])
    last = result(
        "pretrain_3",
        "pretrain",
        {"model": artifact("Model", a__txt="2")},
        [(ingest, "documents"), (first, "model")],
        stats={"parameters": 1234},
    )
    return chain_of(collect, ingest, first, last)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A release with nothing in it."""
    path = tmp_path / "Moxin-LLM"
    path.mkdir()
    return path


def evaluation(of: Chain) -> StageResult:
    return result("evaluate_enhanced", "evaluate", {}, [(of.root.result, "model")])


def level(evidence: Evidence) -> mof_classes.Openness:
    parts, absent = mof_evidence.assess(evidence)
    value = mof_evidence.document(evidence, "Moxin-LLM", parts)
    jsonschema.validate(value, SCHEMA)
    return mof_evidence.explained(mof_classes.classify(value), absent)


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def test_an_empty_folder_is_of_no_class_and_says_what_it_lacks(folder: Path) -> None:
    opened = level(Evidence(folder, chain(), MODEL))
    assert opened.title == "unclassified"
    assert opened.missing == {
        "Model parameters (Final)": "the release has no *.safetensors",
        "Model card": "the release has no README.md",
        "Data card": "the release has no card of the data: 'moxin release' writes one for each corpus",
        "Technical report": "the release has no report: 'moxin release' and 'moxin report --output report.html'"
        " write one",
        "Evaluation results": "the run has no evaluation of this model",
    }


def test_class_by_class(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is added makes it the next class, and no sooner."""
    evidence = Evidence(folder, chain(), MODEL, (evaluation(chain()),))
    fill(folder, "model.safetensors", "README.md", "../data/ingest_web/README.md")
    assert level(evidence).level == 0
    fill(folder, "../report.html")
    opened = level(evidence)
    assert opened.level == 3
    assert opened.missing == {"Evaluation data": "the run has no evaluation of this model"}
    toy = replace(evidence, suites=(("allenai/ai2_arc", "machine", "MIT"),))
    assert "allenai/ai2_arc: not the public data sets" in level(toy).missing["Evaluation data"]
    evidence = replace(evidence, suites=(("allenai/ai2_arc", "hub", "cc-by-sa-4.0"), ("Rowan/hellaswag", "hub", "mit")))
    opened = level(evidence)
    assert opened.level == 2
    assert opened.missing == {
        "Model parameters (Intermediate)": "pretrain_1: in the run's store alone; 'moxin release --model' releases a"
        " model of the family",
        "Research paper": "there, under no licence",
    }
    digest = chain().links[2].result.outputs["model"].digest
    fill(folder, "../Moxin-First/release.json")
    (folder.parent / "Moxin-First" / "release.json").write_text(json.dumps({"digest": digest}))
    assert set(level(evidence).missing) == {"Research paper"}
    facts = mof_classes.facts()
    paper = facts.paper.model_copy(update={"license": "CC-BY-4.0"})
    monkeypatch.setattr(mof_classes, "facts", lambda: facts.model_copy(update={"paper": paper}))
    assert (level(evidence).level, level(evidence).missing) == (1, {})
    assert level(replace(evidence, chain=chain("machine"))).missing == {
        "Datasets": "collect: made on the machine of the run, and in its store alone"
    }


def test_the_file_says_where_everything_is(folder: Path) -> None:
    fill(folder, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "README.md", "config.json")
    suites = (("a/b", "hub", "mit"), ("openai/openai_humaneval", "package", "MIT"), ("c/d", "hub", "cc-by-4.0"))
    evidence = Evidence(folder, chain(), MODEL, (evaluation(chain()),), suites)
    value = mof_evidence.document(evidence, "Moxin-LLM", mof_evidence.assess(evidence)[0])
    rows = {row["name"]: row for row in value["release"]["components"]}
    assert rows["Model parameters (Final)"]["component_path"] == "model.safetensors.index.json"
    assert rows["Training code"]["component_path"] == "stages/pretrain"
    assert rows["Training code"]["license"] == "Apache-2.0"
    assert rows["Data preprocessing code"]["component_path"] == "stages/collect, stages/ingest"
    assert rows["Evaluation data"]["license"] == "MIT AND CC-BY-4.0"
    assert rows["Evaluation data"]["component_path"] == "hf://a/b, openai/openai_humaneval, hf://c/d"
    assert rows["Datasets"]["license"] == "ODC-By-1.0"
    assert rows["Datasets"]["component_path"] == f"hf://org/web@{REVISION}/a.parquet"
    assert rows["Supporting libraries and tools"]["license"] == mof_classes.UNLICENSED
    assert "Model card" in rows
    assert "Technical report" not in rows
    release = value["release"]
    assert (release["version"], release["date"], release["treatment"]) == ("1234", "2026-01-02", "pre-trained")
    (folder / mof_classes.FILE).write_text(yaml.safe_dump(value))
    assert mof_evidence.read(folder) == mof_classes.classify(value)


def test_a_data_set_without_a_licence_makes_the_data_unlicensed(folder: Path) -> None:
    evidence = Evidence(folder, chain(), MODEL, (evaluation(chain()),), (("a/b", "hub", "mit"), ("c/d", "hub", "")))
    parts, _ = mof_evidence.assess(evidence)
    assert parts["Evaluation data"].license == ""


def test_code_that_is_not_there_is_no_component(folder: Path) -> None:
    first, *_, last = chain().links
    other = last.result.model_copy(update={"stage": "no_such_stage"})
    parts, absent = mof_evidence.assess(Evidence(folder, chain_of(first.result, other), MODEL))
    assert "Training code" not in parts
    assert absent["Training code"] == "this installation has no stages/no_such_stage"


def test_files_of_one_machine_are_no_data_set(folder: Path) -> None:
    first, *others = chain().links
    config = {"origin": "listing", "web": [{"uri": "file:///x/a.parquet"}]}
    local = first.result.model_copy(update={"config": config})
    _, absent = mof_evidence.assess(Evidence(folder, chain_of(local, *(link.result for link in others)), MODEL))
    assert absent["Datasets"] == "collect: read from files of the machine of the run"


def test_a_folder_without_the_file(folder: Path) -> None:
    with pytest.raises(InputError, match=r"has no mof\.yml"):
        mof_evidence.read(folder)
    (folder / mof_classes.FILE).write_text("- x: [")
    with pytest.raises(InputError, match="cannot be read"):
        mof_evidence.read(folder)
