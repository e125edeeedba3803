"""Former names of configuration fields: accepted for one version with one warning; keys know the present names
alone.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
from pydantic import BaseModel, ConfigDict, Field
from typer.testing import CliRunner

from flows import cli, generated_files, profiles
from flows.profiles import Profile
from stages.core.config import Operational, StageConfig
from stages.core.errors import ConfigError
from stages.core.graph import Pipeline
from stages.core.renamed import Moved, Renamed, current_names, former_names, moved_settings
from stages.core.stage import Stage
from stages.pipeline import PIPELINE
from tests.support.paths import ROOT


class Phase(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    max_response_length: Annotated[int, Renamed("max_response", until="9.9")] = Field(gt=0)


class Rates(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    peak: Annotated[float, Renamed("rate", until="9.9"), Renamed("lr", until="9.8")] = 0.5


class Config(StageConfig):
    global_batch_size: Annotated[int, Renamed("batch_size", until="9.9")] = Field(default=8, gt=0)
    micro_batch_size: Annotated[Operational[int], Renamed("micro_batch", until="9.9")] = Field(default=1, gt=0)
    context_phases: Annotated[tuple[Phase, ...], Renamed("stages", until="9.9")] = ()
    rates: Rates = Rates()
    named: dict[str, Phase | None] = Field(default_factory=dict)


class Train(Stage[Config], env="train", revision=1):
    """Two nodes of it make a pipeline."""


PIPE = Pipeline([Train(name="train_1"), Train(name="train_2")])
STAGE = Train.stage


def load(folder: Path, text: str, *overrides: str, **others: str) -> Profile:
    for name, body in {"test": text, **others}.items():
        (folder / f"{name}.toml").write_text(body, encoding="utf-8")
    return profiles.load("test", PIPE, overrides, folder)


def test_an_old_name_in_a_file_is_accepted_with_one_line(tmp_path: Path) -> None:
    old = load(tmp_path, f"[stage.{STAGE}]\nbatch_size = 4\n")
    new = load(tmp_path, f"[stage.{STAGE}]\nglobal_batch_size = 4\n")
    assert old.configs == new.configs
    assert [c.identity() for c in old.configs.values()] == [c.identity() for c in new.configs.values()]
    assert old.warnings == (
        f"test.toml: stage.{STAGE}.batch_size is called global_batch_size now: change it; version 9.9 refuses the old"
        " name",
    )
    assert new.warnings == ()


def test_old_names_are_found_in_inner_tables_and_lists_of_tables(tmp_path: Path) -> None:
    text = (
        "[node.train_1]\nstages = [{max_response = 5}, {max_response_length = 6}]\nrates.lr = 0.25\n"
        "named.a.max_response = 7\n"
    )
    profile = load(tmp_path, text)
    config = profile.configs["train_1"]
    assert config.model_dump() == {
        "global_batch_size": 8,
        "micro_batch_size": 1,
        "context_phases": ({"max_response_length": 5}, {"max_response_length": 6}),
        "rates": {"peak": 0.25},
        "named": {"a": {"max_response_length": 7}},
    }
    assert [line.split(" is called ")[0] for line in profile.warnings] == [
        "test.toml: node.train_1.stages",
        "test.toml: node.train_1.stages.0.max_response",
        "test.toml: node.train_1.rates.lr",
        "test.toml: node.train_1.named.a.max_response",
    ]


def test_an_override_may_use_an_old_name(tmp_path: Path) -> None:
    profile = load(tmp_path, "", f"{STAGE}.batch_size=4", "train_2.rates.rate=0.75")
    assert [c.global_batch_size for c in profile.configs.values()] == [4, 4]  # type: ignore[attr-defined]
    assert profile.configs["train_2"].rates.peak == 0.75  # type: ignore[attr-defined]
    assert [line.split(" now: ")[0] for line in profile.warnings] == [
        f"--set '{STAGE}.batch_size=4': stage.{STAGE}.batch_size is called global_batch_size",
        "--set 'train_2.rates.rate=0.75': node.train_2.rates.rate is called peak",
    ]


@pytest.mark.parametrize(
    ("text", "overrides", "others"),
    [
        (f"[stage.{STAGE}]\nglobal_batch_size = 2\n[node.train_1]\nbatch_size = 4\n", (), {}),
        (f"[stage.{STAGE}]\nbatch_size = 2\n[node.train_1]\nglobal_batch_size = 4\n", (), {}),
        ('extends = "base"\n[node.train_1]\nbatch_size = 4\n', (), {"base": "[node.train_1]\nglobal_batch_size = 2\n"}),
        ("[node.train_1]\nglobal_batch_size = 2\n", ("train_1.batch_size=4",), {}),
    ],
)
def test_what_overrides_is_no_conflict(
    tmp_path: Path, text: str, overrides: tuple[str, ...], others: dict[str, str]
) -> None:
    profile = load(tmp_path, text, *overrides, **others)
    assert profile.configs["train_1"].global_batch_size == 4  # type: ignore[attr-defined]
    assert len(profile.warnings) == 1


@pytest.mark.parametrize("field", ["global_batch_size", "batch_size"])
def test_both_names_in_one_table_are_refused(tmp_path: Path, field: str) -> None:
    other = {"global_batch_size": "batch_size", "batch_size": "global_batch_size"}[field]
    with pytest.raises(ConfigError) as error:
        load(tmp_path, f"[node.train_1]\n{field} = 2\n{other} = 2\n")
    assert str(error.value) == (
        "test.toml: node.train_1.global_batch_size: given twice, under its old name too: keep 'global_batch_size' alone"
    )
    with pytest.raises(ConfigError, match=r"rates\.peak: given twice"):
        load(tmp_path, "[node.train_1]\nrates = {rate = 1, lr = 2}\n")


def test_a_wrong_value_under_an_old_name_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"test\.toml: train_1\.global_batch_size = -4: .* greater than 0"):
        load(tmp_path, "[node.train_1]\nbatch_size = -4\n")
    with pytest.raises(ConfigError, match=r"test\.toml: train_1\.batch: no such setting"):
        load(tmp_path, "[node.train_1]\nbatch = 4\n")


def test_values_of_any_kind_pass(tmp_path: Path) -> None:
    """Only names change: what is no table where one belongs is left to validation."""
    values = {"stages": "x", "rates": 3, "named": [1], "other": {"batch_size": 1}}
    renamed, old = current_names(Config, values)
    assert renamed == {"context_phases": "x", "rates": 3, "named": [1], "other": {"batch_size": 1}}
    assert [(name.path, name.field, name.until) for name in old] == [("stages", "context_phases", "9.9")]


# --- settings that went into a table ----------------------------------------------------------------------------------


class Sizes(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    tensor: int = 1
    zero: int = 1


class SpreadConfig(StageConfig):
    threads: int = 1
    sizes: Annotated[
        Sizes,
        Moved("tensor_parallel", "tensor", until="9.9"),
        Moved("backend.zero_stage", "zero", until="9.9"),
        Moved("backend.plugin", "zero", until="9.9", values={"gemini": 3}, advice="follows from sizes.zero: remove it"),
    ] = Sizes()


class Spread(Stage[SpreadConfig], env="train", revision=1):
    """A stage whose settings have moved."""


def load_spread(folder: Path, text: str, *overrides: str) -> Profile:
    (folder / "test.toml").write_text(text, encoding="utf-8")
    return profiles.load("test", Pipeline([Spread(name="one")]), overrides, folder)


@pytest.mark.parametrize(
    ("text", "overrides", "sizes"),
    [
        ("[node.one]\ntensor_parallel = 2\nbackend = {zero_stage = 2, plugin = 'zero'}\n", (), (2, 2)),
        (f"[stage.{STAGE}]\ntensor_parallel = 2\n[node.one.sizes]\nzero = 2\n", (), (2, 2)),
        ("[node.one.sizes]\nzero = 2\n", ("one.tensor_parallel=2", "one.backend.plugin=zero"), (2, 2)),
        ("[node.one]\ntensor_parallel = 2\n", (f"{STAGE}.backend.plugin=gemini",), (2, 3)),
        ("[node.one]\ntensor_parallel = 4\n", ("one.sizes={tensor=2, zero=3}",), (2, 3)),
        ("", ("one.backend={zero_stage=2}", "one.sizes.tensor=2"), (2, 2)),
    ],
)
def test_a_setting_that_moved_is_found_where_it_is_now(
    tmp_path: Path, text: str, overrides: tuple[str, ...], sizes: tuple[int, int]
) -> None:
    """In files and overrides, one on top of the other, whatever is left of the old table."""
    profile = load_spread(tmp_path, text, *overrides)
    assert profile.configs["one"].sizes == Sizes(tensor=sizes[0], zero=sizes[1])  # type: ignore[attr-defined]
    assert all("version 9.9 refuses the old name" in line for line in profile.warnings)
    assert len(profile.warnings) == f"{text}{overrides}".count("tensor_parallel") + f"{text}{overrides}".count(
        "zero_stage"
    ) + f"{text}{overrides}".count("plugin")


def test_a_setting_that_moved_says_where_to(tmp_path: Path) -> None:
    profile = load_spread(tmp_path, "[node.one]\nbackend = {zero_stage = 2, plugin = 'zero'}\n")
    assert profile.warnings == (
        "test.toml: node.one.backend.zero_stage is called sizes.zero now: change it; version 9.9 refuses the old name",
        "test.toml: node.one.backend.plugin follows from sizes.zero: remove it; version 9.9 refuses the old name",
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[node.one]\ntensor_parallel = 2\nsizes = {tensor = 2}\n", r"node\.one\.sizes\.tensor: given twice"),
        ("[node.one]\nbackend = {zero_stage = 2, plugin = 'gemini'}\n", r"sizes\.zero: given twice"),
        ("[node.one]\ntensor_parallel = 2\nsizes = 3\n", r"one\.sizes = 3"),
        ("[node.one]\nbackend = {zero_stage = 2, other = 1}\n", r"one\.backend: no such setting"),
        ("[node.one]\nbackend = 3\n", r"one\.backend: no such setting"),
    ],
)
def test_what_moved_and_does_not_fit_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_spread(tmp_path, text)


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def pipeline_with_old_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test.toml").write_text("[node.train_1]\nbatch_size = 4\n", encoding="utf-8")
    monkeypatch.setattr("stages.pipeline.PIPELINE", PIPE)
    monkeypatch.setattr(generated_files, "PIPELINE", PIPE)
    monkeypatch.setattr(generated_files, "files", dict)
    monkeypatch.setattr(profiles, "FOLDER", tmp_path)
    monkeypatch.setattr(profiles.load, "__defaults__", ((), tmp_path))


@pytest.mark.usefixtures("pipeline_with_old_names")
def test_check_says_an_old_name_once() -> None:
    result = CliRunner().invoke(cli.app, ["check", "--json"])
    assert json.loads(result.stdout)["problems"] == []
    assert result.stderr == (
        "warning: test.toml: node.train_1.batch_size is called global_batch_size now: change it; version 9.9 refuses"
        " the old name\n"
    )


@pytest.mark.usefixtures("pipeline_with_old_names")
def test_plan_and_run_say_an_old_name_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("plan", "run"):

        def stop(*args: Any, **options: Any) -> None:
            raise ConfigError("far enough")

        monkeypatch.setattr("flows.plan.make_plan", stop)
        monkeypatch.setattr("flows.cli.running.start_services", stop)
        for module in ("common", "planning"):
            monkeypatch.setattr(f"flows.cli.{module}.open_ledger", lambda *_: _nothing())
        result = CliRunner().invoke(cli.app, [command, "--profile", "test"])
        assert isinstance(result.exception, ConfigError), result.exception
        assert str(result.exception) == "far enough"
        assert result.stderr.count("is called global_batch_size now") == 1


class _nothing:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *args: object) -> None:
        return None


# --- the repository ---------------------------------------------------------------------------------------------------


def configs() -> Iterator[type[BaseModel]]:
    """Every configuration model of the pipeline, inner ones too."""

    def inner(annotation: Any) -> Iterator[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
            for info in annotation.model_fields.values():
                yield from inner(info.annotation)
        for argument in get_args(annotation):
            yield from inner(argument)

    for config in dict.fromkeys(node.config_type for node in PIPELINE):
        yield from inner(config)


def test_no_old_name_outlives_its_version() -> None:
    """Raising the version to one that an entry names makes this fail: remove the entry then."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    version = [int(part) for part in project["project"]["version"].split(".")[:2]]
    for model in configs():
        for name, (field, entry) in former_names(model).items():
            assert name not in model.model_fields, f"{model.__name__}.{field}: {name} is a field"
            assert [int(part) for part in entry.until.split(".")] > version, f"{model.__name__}.{field}: {entry}"
        for field, moved in moved_settings(model):
            assert moved.to in model.model_fields[field].annotation.model_fields, moved  # type: ignore[union-attr]
            assert moved.path.partition(".")[0] not in model.model_fields, moved
            assert [int(part) for part in moved.until.split(".")] > version, f"{model.__name__}.{field}: {moved}"


@pytest.mark.parametrize("name", profiles.names())
def test_the_profiles_use_present_names(name: str) -> None:
    assert profiles.load(name, PIPELINE).warnings == ()


def test_what_post_training_was_set_with_before_is_still_understood() -> None:
    """The names of version 0.1, through `--set`, as a Prefect form gives them too."""
    old = (
        "sft.batch_size=32",
        "sft.micro_batch=8",
        "sft.answer_tokens=16",
        "dpo.loss=dpo_norm",
        "grpo_areal.stages=[{steps=2, max_response=8, group=4}]",
        "grpo_areal.prompts=8",
        "grpo_areal.minibatches=2",
        "grpo_areal.micro_batch=16",
        "grpo_areal.kl=0.5",
        "problems.verifier=deepscaler",
    )
    new = (
        "sft.global_batch_size=32",
        "sft.micro_batch_size=8",
        "sft.max_new_tokens=16",
        "dpo.loss_type=dpo_norm",
        "grpo_areal.context_phases=[{steps=2, max_response_length=8, num_generations=4}]",
        "grpo_areal.prompts_per_step=8",
        "grpo_areal.num_mini_batches=2",
        "grpo_areal.micro_batch_size=16",
        "grpo_areal.kl_coef=0.5",
        "problems.verifier_rule=deepscaler",
    )
    before, after = profiles.load("tiny", PIPELINE, old), profiles.load("tiny", PIPELINE, new)
    assert before.configs == after.configs
    assert len(before.warnings) == len(old) + 2  # the two inner names of a context phase
    assert after.warnings == ()


def test_what_pretraining_was_spread_with_before_is_still_understood() -> None:
    old = ("7b", ["pretrain_1.tensor_parallel=2", "pretrain_1.colossalai.plugin=hybrid", "pretrain_1.precision=bf16"])
    new = ("7b", ["pretrain_1.parallel.tensor=2", "pretrain_1.precision=bf16"])
    before, after = (profiles.load(name, PIPELINE, overrides) for name, overrides in (old, new))
    assert before.configs == after.configs
    assert (len(before.warnings), len(after.warnings)) == (2, 0)
