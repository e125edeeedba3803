"""The family's file: Table 9 as the paper prints it, and one clear line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows import family, paper
from stages.core.artifacts import EvalReport
from stages.core.errors import ConfigError
from stages.pipeline import PIPELINE

ENTRY = """[model.pretrain_3]
name = "Moxin-7B-Enhanced"
description = "One line."
license = "Apache-2.0"
base = "pretrain_2"
tables.table_2 = {{ row = "Moxin-7B-Enhanced", nodes = ["evaluate_enhanced"] }}
[model.pretrain_2]
name = "Moxin-7B-Original"
description = "One line."
license = "Apache-2.0"
{more}
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "family.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_table_9_as_the_paper_prints_it() -> None:
    released = [(model.name, model.released_as) for model in family.load().released()]
    assert released == [
        ("Moxin-7B-Enhanced", "Moxin-7B-LLM"),
        ("Moxin-7B-SFT", None),
        ("Moxin-7B-DPO", "Moxin-7B-Instruct"),
        ("Moxin-7B-DPO-II", None),
        ("Moxin-7B-RL-DeepScaleR", "Moxin-7B-Reasoning"),
        ("Moxin-7B-RL-AReal", None),
        ("Moxin-7B-VLM", "Moxin-7B-VLM"),
    ]


def test_every_row_of_ours_in_the_papers_tables_belongs_to_a_model() -> None:
    ours = {
        (name, row.model)
        for name, table in paper.tables().items()
        for row in table.rows
        if row.model.startswith("Moxin") or row.model == "Ours"
    }
    assert {(table, row) for model in family.load() for table, row in model.rows.items()} == ours


def test_what_a_release_is_called_and_which_nodes_evaluate_it() -> None:
    models = family.load()
    assert models["dpo_tulu"].release == "Moxin-7B-Instruct"
    assert models["sft_tulu"].release == "Moxin-7B-SFT"
    assert models["pretrain_3"].evaluations[:1] == ("evaluate_enhanced",)
    assert models["pretrain_3"].license == "Apache-2.0"
    assert [model.node for model in models.of_table("table_3")] == ["pretrain_2", "pretrain_3"]
    with pytest.raises(ConfigError, match=r"family\.toml has no model of node 'collect'"):
        models["collect"]


def test_a_licence_is_written_as_spdx_writes_it(tmp_path: Path) -> None:
    text = ENTRY.format(more="").replace("Apache-2.0", "apache-2.0 and mit")
    assert family.load(file=written(tmp_path, text))["pretrain_3"].license == "Apache-2.0 AND MIT"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model.pretrain_3]", "model.pretrain_33]", r"model\.pretrain_33: .*no such node; did you mean 'pretrain_3'\?"),
        ('base = "pretrain_2"', 'base = "pretrain"', r"base = 'pretrain' is no model of this file; did you mean"),
        ("model.pretrain_2]", "model.vlm]", r"base = 'pretrain_2' is no model of this file"),
        ('row = "Moxin-7B-Enhanced"', 'row = "Moxin-7B"', r"tables\.table_2\.row = 'Moxin-7B': the paper's"),
        ("tables.table_2", "tables.table_12", r"tables\.table_12: the paper has no such table; did you mean 'table_2'"),
        ('["evaluate_enhanced"]', '["evaluate"]', r"table_2\.nodes: 'evaluate' is no node that makes"),
        ('["evaluate_enhanced"]', '["tokenizer"]', r"'tokenizer' is no node that makes"),
        ('["evaluate_enhanced"]', '["evaluate_original"]', r"'evaluate_original' does not evaluate this model"),
        ('"Apache-2.0"', '"open"', r"model\.pretrain_3\.license = 'open': not an SPDX licence expression"),
        ('"One line."', '"Two\\nlines."', r"family\.toml: model\.pretrain_3\.description = "),
        ('name = "Moxin-7B-Enhanced"', "", r"family\.toml: model\.pretrain_3\.name: Field required"),
        ('name = "Moxin', 'nom = "Moxin', r"family\.toml: model\.pretrain_3\.(name|nom)"),
        ("[model.pretrain_3]", "[models.pretrain_3]", r"family\.toml: models"),
        ("[model.pretrain_3]", "[model", r"family\.toml is not valid TOML"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_file_key_and_value(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = ENTRY.format(more="")
    assert old in text
    with pytest.raises(ConfigError, match=message) as caught:
        family.load(file=written(tmp_path, text.replace(old, new, 1)))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("family.toml")


def test_the_evaluation_of_a_later_model_is_refused_by_its_name(tmp_path: Path) -> None:
    more = 'tables.table_2 = { row = "Moxin-7B-Original", nodes = ["evaluate_enhanced"] }'
    with pytest.raises(ConfigError, match=r"'evaluate_enhanced' does not evaluate this model, but pretrain_3$"):
        family.load(file=written(tmp_path, ENTRY.format(more=more)))


def test_every_evaluation_of_the_pipeline_fills_a_row() -> None:
    """A node that is wired anew belongs under its model's tables in infra/family.toml, or no table shows its scores."""
    listed = {node for model in family.load() for node in model.evaluations}
    outputs = {
        node.name: {port.type for port in node.ports.values() if port.direction == "output"} for node in PIPELINE
    }
    assert {name for name, types in outputs.items() if EvalReport in types} == listed
