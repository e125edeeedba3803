"""Profiles: merging, overrides, and mistakes that end in one line with file, key, value and the nearest name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import launch, profiles
from flows.profiles import Profile, merge
from stages.collect.spec import Collect
from stages.core.errors import ConfigError
from stages.core.graph import Pipeline
from stages.pipeline import PIPELINE
from tests.support.probe_pipeline import small_pipeline

PIPE = small_pipeline()


def load(folder: Path, text: str, *overrides: str, **others: str) -> Profile:
    """Write `test.toml` and other profiles, and load `test`."""
    for name, body in {"test": text, **others}.items():
        (folder / f"{name}.toml").write_text(body, encoding="utf-8")
    return profiles.load("test", PIPE, overrides, folder)


def value(profile: Profile, node: str, field: str) -> Any:
    return getattr(profile.configs[node], field)


# --- values -----------------------------------------------------------------------------------------------------------


def test_an_empty_profile_gives_every_default(tmp_path: Path) -> None:
    profile = load(tmp_path, "")
    assert profile.name == "test"
    assert set(profile.configs) == set(profile.resources) == set(PIPE.nodes)
    assert value(profile, "train_1", "learning_rate") == 0.1
    assert profile.settings.parallel == 2
    assert profile.settings.on_drift == "warn"


def test_a_nodes_own_value_wins_over_its_stages(tmp_path: Path) -> None:
    profile = load(tmp_path, "[stage.probe_train]\nlearning_rate = 1\nsteps = 9\n[node.train_2]\nlearning_rate = 2\n")
    assert [value(profile, n, "learning_rate") for n in ("train_1", "train_2")] == [1, 2]
    assert [value(profile, n, "steps") for n in ("train_1", "train_2")] == [9, 9]


def test_nested_tables_are_merged_not_replaced(tmp_path: Path) -> None:
    profile = load(tmp_path, "[stage.probe_train.shape]\nlayers = 5\nhidden = 6\n[node.train_2.shape]\nhidden = 7\n")
    assert value(profile, "train_1", "shape").model_dump() == {"layers": 5, "hidden": 6}
    assert value(profile, "train_2", "shape").model_dump() == {"layers": 5, "hidden": 7}


def test_resources_come_from_the_stage_then_the_profile(tmp_path: Path) -> None:
    text = (
        "[node.train_1]\nworkers = 3\n[resources.probe_train]\nmemory_gib = 5\n[resources.train_2]\nmemory_gib ="
        " 6\ngpus = 8\n"
    )
    profile = load(tmp_path, text)
    assert profile.resources["train_1"].cpus == 3
    assert [profile.resources[n].memory_gib for n in ("train_1", "train_2")] == [5, 6]
    assert [profile.resources[n].gpus for n in ("train_1", "train_2")] == [0, 8]


def test_operational_fields_are_set_like_any_other_and_change_no_identity(tmp_path: Path) -> None:
    plain, busy = load(tmp_path, ""), load(tmp_path, "[node.train_1]\nworkers = 8\nsave_every = 7\n")
    assert value(busy, "train_1", "workers") == 8
    assert busy.configs["train_1"].identity() == plain.configs["train_1"].identity()


# --- extends ----------------------------------------------------------------------------------------------------------


def test_a_profile_starts_from_another(tmp_path: Path) -> None:
    base = "parallel = 5\nretries = 0\n[node.train_1]\nsteps = 5\nlearning_rate = 5\n"
    profile = load(
        tmp_path,
        'extends = "middle"\n[node.train_1]\nsteps = 7\n',
        middle='extends = "base"\nparallel = 6\n',
        base=base,
    )
    assert (profile.settings.parallel, profile.settings.retries) == (6, 0)
    assert (value(profile, "train_1", "steps"), value(profile, "train_1", "learning_rate")) == (7, 5)


def test_a_circle_is_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"in a circle: test -> other -> test"):
        load(tmp_path, 'extends = "other"\n', other='extends = "test"\n')
    with pytest.raises(ConfigError, match=r"in a circle: test -> test"):
        load(tmp_path, 'extends = "test"\n')


def test_a_profile_that_extends_nothing_known_gets_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no profile 'bsae'; did you mean 'base'"):
        load(tmp_path, 'extends = "bsae"\n', base="")


def test_a_mistake_in_the_base_names_the_base(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^base\.toml: train_1\.steps = 0"):
        load(tmp_path, 'extends = "base"\n[node.train_2]\nsteps = 1\n', base="[node.train_1]\nsteps = 0\n")
    with pytest.raises(ConfigError, match=r"^base\.toml: parallel = 0"):
        load(tmp_path, 'extends = "base"\n', base="parallel = 0\n")


# --- overrides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "node", "field", "expected"),
    [
        ("train_1.learning_rate=1e-3", "train_1", "learning_rate", 1e-3),
        ("train_1.steps = 12", "train_1", "steps", 12),
        ("source_a.text=hello", "source_a", "text", "hello"),
        ('source_a.text="a = b"', "source_a", "text", "a = b"),
        ("source_a.text=a=b", "source_a", "text", "a=b"),
        ("source_a.text=", "source_a", "text", ""),
        ("source_a.text=file:///x#y", "source_a", "text", "file:///x#y"),
        ("source_a.text='7'", "source_a", "text", "7"),
        ("train_1.shape.layers=3", "train_1", "shape", {"layers": 3, "hidden": 8}),
        ("train_1.shape={hidden=4}", "train_1", "shape", {"layers": 2, "hidden": 4}),
    ],
)
def test_an_override_is_a_toml_value_or_else_a_text(
    tmp_path: Path, override: str, node: str, field: str, expected: Any
) -> None:
    found = value(load(tmp_path, "", override), node, field)
    assert (found.model_dump() if hasattr(found, "model_dump") else found) == expected


def test_an_override_wins_over_everything_and_the_last_one_over_the_first(tmp_path: Path) -> None:
    text = "[stage.probe_train]\nsteps = 1\n[node.train_1]\nsteps = 2\n"
    profile = load(tmp_path, text, "train_1.steps=3", "train_1.steps=4")
    assert [value(profile, n, "steps") for n in ("train_1", "train_2")] == [4, 1]
    assert profile.overrides == ("train_1.steps=3", "train_1.steps=4")


def test_a_stage_wide_override_reaches_nodes_that_have_their_own_value(tmp_path: Path) -> None:
    profile = load(tmp_path, "[node.train_1]\nsteps = 2\n", "probe_train.steps=9")
    assert [value(profile, n, "steps") for n in ("train_1", "train_2")] == [9, 9]


def test_an_override_can_reach_the_profiles_own_settings_and_the_resources(tmp_path: Path) -> None:
    profile = load(tmp_path, "", "parallel=7", "on_drift=fail", "launcher=docker", "resources.train_1.gpus=2")
    assert (profile.settings.parallel, profile.settings.on_drift, profile.settings.launcher) == (7, "fail", "docker")
    assert profile.resources["train_1"].gpus == 2


def test_an_override_leaves_the_other_nodes_of_a_stage_alone(tmp_path: Path) -> None:
    profile = load(tmp_path, "[stage.probe_train.shape]\nlayers = 4\n", "train_1.shape.hidden=5")
    assert value(profile, "train_1", "shape").model_dump() == {"layers": 4, "hidden": 5}
    assert value(profile, "train_2", "shape").model_dump() == {"layers": 4, "hidden": 8}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train_1.steps", "write node.field=value"),
        ("=3", "write node.field=value"),
        ("train_1.=3", "write node.field=value"),
        ("trian_1.steps=3", "no node 'trian_1'; did you mean 'train_1'"),
        ("train_1.stepz=3", "--set: train_1.stepz: no such setting; did you mean 'steps'"),
        ("train_1.steps=zero", "--set: train_1.steps = 'zero': Input should be a valid integer"),
        ("probe_train.steps=0", "--set: train_1.steps = 0: Input should be greater than 0"),
        ("train_1.steps.deep=0", "--set: train_1.steps = {'deep': 0}: Input should be a valid integer"),
        ("paralel=3", "--set: paralel: no such setting; did you mean 'parallel'"),
        ("parallel=0", "--set: parallel = 0: Input should be greater"),
        ("resources.train_1.gpu=3", "--set: resources.train_1.gpu: no such setting; did you mean 'gpus'"),
    ],
)
def test_a_wrong_override_is_one_line(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "", override)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_override_below_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'steps' is a value, not a table"):
        load(tmp_path, "", "train_1.steps=1", "train_1.steps.deep=2")


# --- mistakes in files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[node.train_1]\nlerning_rate = 1\n",
            "test.toml: train_1.lerning_rate: no such setting; did you mean 'learning_rate'",
        ),
        (
            "[node.train_1]\nzzz = 1\n",
            "test.toml: train_1.zzz: no such setting; there are: learning_rate, sequence_length, steps",
        ),
        (
            "[stage.probe_train.shape]\nlayer = 1\n",
            "test.toml: train_1.shape.layer: no such setting; did you mean 'layers'",
        ),
        ("[node.train_1]\nsteps = 1.5\n", "test.toml: train_1.steps = 1.5: Input should be a valid integer"),
        (
            '[stage.probe_train]\nlearning_rate = "fast"\n',
            "test.toml: train_1.learning_rate = 'fast': Input should be a valid number",
        ),
        ("[node.trian_1]\nsteps = 1\n", "test.toml: [node.trian_1] names no node; did you mean 'train_1'"),
        (
            "[stage.probe_trane]\nsteps = 1\n",
            "test.toml: [stage.probe_trane] names no stage; did you mean 'probe_train'",
        ),
        ("[resources.zzz]\ncpus = 1\n", "test.toml: [resources.zzz] names no resources"),
        ("[resources.train_1]\ncpus = 0\n", "test.toml: resources.train_1.cpus = 0: Input should be greater than 0"),
        ("[nodes.train_1]\nsteps = 1\n", "test.toml: nodes: no such setting; did you mean 'node'"),
        ('on_drift = "ignore"\n', "test.toml: on_drift = 'ignore': Input should be 'rerun', 'warn' or 'fail'"),
        ("extends = 5\n", "test.toml: extends = 5: Input should be a valid string"),
        ("node = 5\n", "test.toml: node = 5: Input should be a valid dictionary"),
        ("[node]\ntrain_1 = 5\n", "test.toml: node.train_1 = 5: Input should be a valid dictionary"),
        ("parallel = \n", "test.toml is not valid TOML"),
    ],
)
def test_a_mistake_is_one_line_with_file_key_value_and_what_to_do(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_profile_extends_is_not_set_afterwards(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--set 'extends=other': what a profile extends is read before settings are"):
        load(tmp_path, "", "extends=other", other="parallel = 7\n")


def test_a_file_that_is_no_text_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "test.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"test\.toml is not valid TOML"):
        profiles.load("test", PIPE, folder=tmp_path)


def test_an_unknown_profile_gets_the_nearest_or_all_names(tmp_path: Path) -> None:
    load(tmp_path, "", small="")
    with pytest.raises(ConfigError, match="no profile 'smal'; did you mean 'small'"):
        profiles.load("smal", PIPE, folder=tmp_path)
    with pytest.raises(ConfigError, match="no profile 'zzz'; there are: small, test"):
        profiles.load("zzz", PIPE, folder=tmp_path)
    for path in (str(tmp_path / "small"), f"../{tmp_path.name}/small"):
        with pytest.raises(ConfigError, match=f"no profile '{path}'"):  # names of results would lie under it
            profiles.load(path, PIPE, folder=tmp_path)


def test_a_setting_that_names_a_node_alone_is_told_to_name_a_field() -> None:
    """It listed the settings of the profile."""
    with pytest.raises(ConfigError, match=r"--set 'dpo_tulu=3': dpo_tulu has many fields: write dpo_tulu.field=value$"):
        profiles.load("tiny", PIPELINE, ["dpo_tulu=3"])


def test_a_row_of_a_list_gets_the_names_of_its_own_table(tmp_path: Path) -> None:
    """`collect.text` is a list of tables: a mistake in one names that table's settings, not the stage's."""
    from stages.collect.spec import Collect
    from stages.core.graph import Pipeline

    (tmp_path / "test.toml").write_text('[[node.collect.text]]\nurl = "file:///x"\nformat = "jsonl"\nsource = "x"\n')
    with pytest.raises(ConfigError) as caught:
        profiles.load("test", Pipeline([Collect(name="collect")]), folder=tmp_path)
    assert "collect.text.0.uri: required, and not set" in str(caught.value)
    (tmp_path / "test.toml").write_text(
        '[[node.collect.text]]\nuri = "file:///x"\nformat = "jsonl"\nsorce = "x"\nsource = "x"\n'
    )
    with pytest.raises(
        ConfigError, match=r"test\.toml: collect\.text\.0\.sorce: no such setting; did you mean 'source'"
    ):
        profiles.load("test", Pipeline([Collect(name="collect")]), folder=tmp_path)


# --- merging ----------------------------------------------------------------------------------------------------------


TABLES = st.recursive(
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 3), max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), st.integers(0, 3) | inner, max_size=3),
    max_leaves=8,
)


def leaves(table: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every value of a table by its path."""
    if not isinstance(table, dict):
        return {path: table}
    return {p: v for key, inner in table.items() for p, v in leaves(inner, (*path, key)).items()}


@given(TABLES, TABLES)
def test_what_lies_on_top_always_wins(base: dict[str, Any], over: dict[str, Any]) -> None:
    merged = leaves(merge(base, over))
    assert leaves(over).items() <= merged.items()
    assert merged.items() <= {**leaves(base), **leaves(over)}.items()


@given(TABLES)
def test_merging_with_nothing_or_itself_changes_nothing(table: dict[str, Any]) -> None:
    assert merge(table, {}) == merge({}, table) == merge(table, table) == table


def test_who_runs_a_node_is_the_nodes_own_launcher_then_its_stages_then_the_profiles(tmp_path: Path) -> None:
    profile = load(
        tmp_path,
        'launcher = "process"\n[launchers]\nprobe_train = "docker"\ntrain_2 = "slurm"\n',
        "launchers.source_a=docker",
    )
    chosen = {name: profile.launchers[name] for name in ("source_a", "source_b", "train_1", "train_2")}
    assert chosen == {"source_a": "docker", "source_b": "process", "train_1": "docker", "train_2": "slurm"}
    with pytest.raises(
        ConfigError, match=r"test\.toml: \[launchers\.train_3\] names no launchers; did you mean 'train_"
    ):
        load(tmp_path, '[launchers]\ntrain_3 = "docker"\n')


# --- the profiles of this repository ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "launcher=slurn",
            r"^--set: launcher = 'slurn': Input should be 'process', 'docker', 'slurm' or 'kubernetes'$",
        ),
        ("launchers.pretrain_1=dock", r"^--set: launchers\.pretrain_1 = 'dock': Input should be"),
        (
            "pretrain_1.shape.kv_heads=3",
            r"^--set: pretrain_1\.shape: 4 query heads cannot share 3 key-value heads evenly$",
        ),
        (
            "pretrain_1.warmup_steps=10000000",
            r"^tiny\.toml: pretrain_1: warmup_steps = 10000000, but the budget is \d+ steps in all$",
        ),
    ],
)
def test_values_that_do_not_go_together_are_one_short_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        profiles.load("tiny", PIPELINE, [override])


def test_a_profile_names_the_launchers_that_there_are() -> None:
    assert get_args(profiles.LauncherName) == tuple(launch._LAUNCHERS)


@pytest.mark.parametrize(("name", "cards"), [("small", 1), ("7b", 8)])
def test_a_profile_of_real_data_says_what_each_node_needs(name: str, cards: int) -> None:
    """Nothing of this machine; a GPU wherever one is asked for, and no more than a machine has; a way out for what
    downloads.
    """
    profile = profiles.load(name, PIPELINE)
    for node, config in profile.configs.items():
        resources, trains = profile.resources[node], getattr(config, "device", "cpu") == "cuda"
        assert getattr(config, "origin", "") != "machine", node
        assert (resources.gpus > 0) == (trains or node == "image_features"), node
        assert resources.gpus <= cards, node
        downloads = node.startswith(("collect", "ingest", "benchmarks")) or (getattr(config, "origin", "") == "hub")
        assert (resources.network == "internet") == downloads, node


def test_small_is_one_card_and_a_model_of_125_million_parameters() -> None:
    profile = profiles.load("small", PIPELINE)
    phases = [profile.configs[f"pretrain_{n}"] for n in (1, 2, 3)]
    assert {p.shape.parameters(32_000) for p in phases} == {123_489_024}
    read = [profile.configs[n].max_tokens for n in ("tokenize_short", "tokenize_long", "tokenize_capability")]
    assert [p.tokens for p in phases] == read  # each window once
    assert sum(read) / 123_489_024 == pytest.approx(20, rel=0.02)  # tokens for each parameter (Hoffmann et al. 2022)
    assert {p.global_batch_size * p.sequence_length for p in phases} == {512_000}
    assert profile.settings.parallel == 1
    sources = [
        *value(profile, "collect", "text"),
        *value(profile, "collect", "web"),
        *value(profile, "collect", "code"),
    ]
    assert all(
        s.listed and s.sha256 if s.uri.startswith("https://") else len(s.uri.partition("@")[2]) == 40 for s in sources
    ), "pinned"


def test_arrays_need_their_launcher() -> None:
    def loaded(*overrides: str) -> Profile:
        return profiles.load("tiny", PIPELINE, overrides)

    with pytest.raises(
        ConfigError,
        match=(
            r"^--set: dedup_text\.workers = 'slurm' needs the slurm launcher, but 'process' runs it: set"
            r" launchers\.dedup_text to slurm"
        ),
    ):
        loaded("dedup_text.workers=slurm")
    with pytest.raises(ConfigError, match=r"workers = 'kubernetes' needs the kubernetes launcher, but 'slurm' runs it"):
        loaded("dedup_text.workers=kubernetes", "launcher=slurm")
    profile = loaded("dedup_text.workers=slurm", "launchers.dedup_text=slurm")
    assert value(profile, "dedup_text", "workers") == "slurm"


def test_a_password_or_a_signature_in_an_address_is_told_without_showing_it(tmp_path: Path) -> None:
    (tmp_path / "test.toml").write_text(
        """
        [[node.collect.text]]
        uri = "https://me:the-password@example.org/a.jsonl?part=3"
        format = "jsonl"
        source = "s"
        mirrors = ["https://example.org/b.jsonl?X-Amz-Signature=the-signature&part=3", "https://example.org/c.jsonl#top"]
        """
    )
    warnings = profiles.load("test", Pipeline([Collect(name="collect")]), (), tmp_path).warnings
    assert [line.partition(" holds ")[0] for line in warnings] == [
        "node.collect.text.0.uri = https://example.org/a.jsonl?part=3",
        "node.collect.text.0.mirrors.0 = https://example.org/b.jsonl?part=3",
    ]
    assert not [line for line in warnings if "the-password" in line or "the-signature" in line]
    for name in profiles.names():
        assert not [line for line in profiles.load(name, PIPELINE).warnings if "password" in line]
