"""The pipeline, its profiles and the files derived from it belong together."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import cost, deploy, generated_files, profiles, scale_tables
from flows.empty_ledger import EmptyLedger
from flows.plan import State, make_plan
from stages.pipeline import PIPELINE


def test_both_profiles_of_the_paper_and_the_laptop_are_there() -> None:
    assert {"tiny", "small", "7b"} <= set(profiles.names())


@pytest.mark.parametrize("name", profiles.names())
def test_a_profile_plans_the_whole_dag_before_anything_ran(name: str) -> None:
    profile = profiles.load(name, PIPELINE)
    plans = make_plan(PIPELINE, profile, EmptyLedger())
    assert [plan.node.name for plan in plans] == list(PIPELINE.nodes)
    sources = {node.name for node in PIPELINE.under(profile.configs) if not node.parents}
    assert {"collect", "problems", "scenes"} <= sources
    assert {plan.node.name for plan in plans if plan.state is State.RUN} == sources
    assert {plan.state for plan in plans if plan.node.name not in sources} == {State.PENDING}
    estimates = cost.estimate(plans, profile, EmptyLedger())
    assert set(estimates) == set(PIPELINE.nodes)


def test_small_says_what_training_costs_before_anything_ran() -> None:
    """Parameters and capped rows follow from the configuration: within two days of one card, every training node has
    its number.
    """
    profile = profiles.load("small", PIPELINE)
    found = cost.estimate(make_plan(PIPELINE, profile, EmptyLedger()), profile, EmptyLedger())
    training = {n.name for n in PIPELINE if n.stage in ("pretrain", "sft", "dpo", "grpo")}
    known = {name for name, e in found.items() if e.basis == "FLOPs"}
    assert training <= known
    steps, tokens = 1_900_000_000 // 512_000, 512_000
    shape = profile.configs["pretrain_1"].shape
    assert found["pretrain_1"].flops == steps * tokens * shape.flops_per_token(32_000, 2000)
    rows, parameters = 200_000, 123_489_024
    measured = 4.0 * parameters * (512 * 1024 + 8 * 256)  # parent and child read 512 rows, and write 8 answers
    assert found["sft_tulu"].flops == 6.0 * parameters * rows * 1024 * 2 + measured
    learned, measured = (
        10.0 * parameters * 50 * 32 * 16 * 1024,
        2.0 * parameters * 200 * 8 * 2048,
    )  # half of the longest answer is the mean
    assert found["grpo_areal"].flops == learned + measured
    assert 0.5 < cost.total(found)["gpu_hours"] < 48


@pytest.mark.parametrize("name", profiles.names())
def test_windows_fit_the_phases_that_read_them(name: str) -> None:
    """A facet that disagrees is refused when a plan is made: here, one token more."""
    wrong = profiles.load(name, PIPELINE, ["pretrain_1.sequence_length=64"])
    with pytest.raises(
        profiles.ConfigError, match=r"pretrain_1: sequence_length is 64, but its input tokens from tokenize_short"
    ):
        make_plan(PIPELINE, wrong, EmptyLedger())


@pytest.fixture(scope="module")
def computed_once() -> Iterator[None]:
    """Tables that depend on the sources alone, which do not change while tests run."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((generated_files, "memory_tables"), (scale_tables, "tables"), (deploy, "prefect_yaml")):
            patch.setattr(module, name, functools.cache(getattr(module, name)))
        yield


@pytest.mark.usefixtures("computed_once")
def test_derived_files_are_fresh() -> None:
    assert generated_files.check() == ([], [])


@pytest.mark.usefixtures("computed_once")
def test_a_stale_derived_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated_files, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text("<!-- derived: dag -->\nold\n<!-- /derived -->\n", encoding="utf-8")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "parallelism.md").write_text(
        "<!-- derived: memory -->\nold\n<!-- /derived -->\n", encoding="utf-8"
    )
    (tmp_path / "docs" / "dag.md").write_text("<!-- derived: stages -->\nold\n<!-- /derived -->\n", encoding="utf-8")
    (tmp_path / "docs" / "scale.md").write_text("<!-- derived: scale -->\nold\n<!-- /derived -->\n", encoding="utf-8")
    names = (
        "docker-bake.json",
        "prefect.yaml",
        "docs/parallelism.md",
        "docs/scale.md",
        "README.md",
        "docs/dag.md",
    )
    assert generated_files.check()[0] == [f"{name} is stale: run 'moxin check --write'" for name in names]
    assert generated_files.check(write=True) == ([], [])
    assert generated_files.check() == ([], [])
    assert "collect --> ingest_text" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| [collect](../stages/collect/README.md) |" in (tmp_path / "docs" / "dag.md").read_text(encoding="utf-8")
