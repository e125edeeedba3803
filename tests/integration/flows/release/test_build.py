"""From the ledger to folders: the models, and a card for every corpus behind them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from safetensors.numpy import load_file

from flows import family, profiles
from flows.family import Family
from flows.release import build, licenses
from stages.core.errors import ConfigError
from stages.core.files import file_sha256
from stages.core.ledger import Ledger
from stages.pipeline import PIPELINE
from tests.support.family_ledger import TENSORS, publish_family, republish

NODES = ("pretrain_2", "sft_tulu")


def released(base: bool = True) -> Family:
    """The family, with the model that the fixtures have as a released base."""
    models = {model.node: model for model in family.load()}
    changes = {"pretrain_2": {"table_9": base}, "sft_tulu": {"base": "pretrain_2"}}
    return Family({node: model.model_copy(update=changes.get(node, {})) for node, model in models.items()})


def write(ledger: Ledger, out: Path, **options: Any) -> build.Release:
    models = released()
    return build.write(
        ledger,
        profiles.load("tiny", PIPELINE, []),
        models,
        build.prepare(ledger, "tiny", models, NODES),
        build.Target(out, **options),
    )


def test_folders_with_cards_licences_and_data_cards(ledger: Ledger, tmp_path: Path) -> None:
    publish_family(ledger)
    done = write(ledger, tmp_path, owner="us")
    assert [one.name for one in done.models] == ["Moxin-132-Original", "Moxin-132-SFT"]
    base, tuned = (one.path for one in done.models)
    assert (tuned / "LICENSE").read_text() == licenses.text("Apache-2.0")
    assert "ODC-BY-1.0 40" in (tuned / licenses.NOTICES).read_text()
    assert (tuned / "chat_template.jinja").is_file()
    assert load_file(base / "model.safetensors").keys() == TENSORS.keys()
    card = ModelCard.load(tuned / "README.md")
    assert card.data.base_model == "us/Moxin-132-Original"
    assert (card.data.language, card.data.datasets) == (["en"], ["owner/chats"])
    assert file_sha256(tuned / "model.safetensors") in card.text
    assert "ingest_text.documents" in card.text
    assert set(done.data) == {"ingest_text", "dedup_text", "instructions_tulu", "capability"}
    assert "toy-piqa" in done.data["capability"].read_text(), "what is asked has a card, too"
    assert "too short" in done.data["ingest_text"].read_text()


def test_the_same_ledger_gives_the_same_bytes(ledger: Ledger, tmp_path: Path) -> None:
    publish_family(ledger)
    one, two = (write(ledger, tmp_path / name) for name in ("a", "b"))
    assert [model.files for model in one.models] == [model.files for model in two.models]
    again = write(ledger, tmp_path / "a")
    assert [model.files for model in again.models] == [model.files for model in one.models]


def test_a_base_that_is_not_released_is_not_named(ledger: Ledger, tmp_path: Path) -> None:
    publish_family(ledger)
    models = released(base=False)
    lineages = build.prepare(ledger, "tiny", models, ["sft_tulu"])
    done = build.write(
        ledger, profiles.load("tiny", PIPELINE, []), models, lineages, build.Target(tmp_path, data_cards=False)
    )
    assert ModelCard.load(done.models[0].path / "README.md").data.base_model is None
    assert done.data == {}
    assert not (tmp_path / "data").exists()


def test_nothing_is_written_when_one_of_the_places_is_taken(ledger: Ledger, tmp_path: Path) -> None:
    publish_family(ledger)
    (tmp_path / "Moxin-132-SFT").mkdir()
    (tmp_path / "Moxin-132-SFT" / "mine").write_text("x")
    with pytest.raises(ConfigError, match="'moxin release' did not write it"):
        write(ledger, tmp_path)
    assert not (tmp_path / "Moxin-132-Original").exists()


def test_a_data_card_of_somebody_else_is_never_replaced(ledger: Ledger, tmp_path: Path) -> None:
    publish_family(ledger)
    done = write(ledger, tmp_path)
    done.data["dedup_text"].write_text("mine")
    with pytest.raises(ConfigError, match=r"dedup_text/README\.md is there already, and is not as 'moxin release'"):
        write(ledger, tmp_path)
    assert done.data["dedup_text"].read_text() == "mine"


def test_two_models_of_one_name_are_refused(ledger: Ledger) -> None:
    publish_family(ledger)
    models = released()
    same = models["sft_tulu"].model_copy(update={"released_as": "Moxin-7B-Original"})
    with pytest.raises(ConfigError, match="pretrain_2 and sft_tulu would both be released as Moxin-132-Original"):
        build.prepare(ledger, "tiny", Family(models.models | {"sft_tulu": same}), NODES)


def test_an_architecture_that_is_not_named_is_one_line(ledger: Ledger, tmp_path: Path) -> None:
    from tests.support.family_ledger import artifact, model_files

    made = publish_family(ledger)
    files = model_files(**{"config.json": json.dumps({"model_type": "mistral"}).encode()})
    nameless = artifact(ledger, "pretrain_2", "model", "Model", files, parameters=132)
    republish(ledger, made["pretrain_2"], "nameless", outputs={"model": nameless})
    models = released()
    lineages = build.prepare(ledger, "tiny", models, ["pretrain_2"])
    with pytest.raises(Exception, match=r"pretrain_2: its config\.json names no architecture"):
        build.write(ledger, profiles.load("tiny", PIPELINE, []), models, lineages, build.Target(tmp_path))
    assert not (tmp_path / "Moxin-132-Original").exists()
