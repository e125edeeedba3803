"""What a plan of `small` and `7b` says before a cent is spent: memory, time, warm-ups, what a broken attempt loses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flows import cost, memory, profiles
from flows.memory import GIB
from stages.lib.modeling.memory import block_parameters
from stages.lib.modeling.shape import ModelShape
from stages.pipeline import PIPELINE
from tests.support.profile_plans import PROFILES, planned, refused, trainings, warned

P = 8_114_180_096


@pytest.mark.parametrize("name", PROFILES)
def test_every_training_node_fits_its_card_and_says_so(name: str) -> None:
    """10."""
    profile, _, estimates = planned(name)
    for node in trainings(profile):
        held = estimates[node.name].memory
        assert held is not None, node.name
        assert held.fits, f"{node.name}: {held.largest()}"
        assert "GiB a GPU" in estimates[node.name].text()
        assert estimates[node.name].row()["memory"]["total"] == held.total


def test_the_sum_of_pretraining_by_hand() -> None:
    """Half-precision weights and gradients, 12 bytes of a parameter over 64 GPUs: 34 GB before activations."""
    held = planned("7b")[2]["pretrain_1"].memory
    assert held is not None
    assert held.parts["weights"] == held.parts["gradients"] == 2 * P
    assert held.parts["masters, moments"] == pytest.approx(12 * P / 64)
    assert sum(held.parts[name] for name in ("weights", "gradients", "masters, moments")) == pytest.approx(
        34e9, rel=0.01
    )
    shape, tokens = ModelShape(), 2000
    kept = 36 * 2 * 4096 * tokens + 8 * 4096 * tokens  # blocks' inputs in half precision, the final norm's
    block = (16 * 4096 + 4 * 4096 + 4 * 1024 + 4 * 32 + 8 * 14336) * tokens + (4 * 14336 + 4 * 4096) * tokens
    assert held.parts["activations"] == kept + max(block, 12 * 2000 * 32_000)
    assert 36 * block_parameters(shape) + 2 * 32_000 * 4096 + 4096 == P
    offloaded = planned("7b", "pretrain_1.parallel.zero=2", "pretrain_1.parallel.offload=true")[2]["pretrain_1"].memory
    assert offloaded is not None
    assert (offloaded.parts["masters, moments"], offloaded.parts["gradients"]) == (0.0, 2 * P / 64)


def test_pretraining_exchanges_its_gradients_once_a_step() -> None:
    """ZeRO 2 keeps no whole gradient to hold back."""
    config = profiles.load("7b", PIPELINE).configs["pretrain_1"]
    assert (config.parallel.zero, config.parallel.offload) == (1, False)  # type: ignore[attr-defined]


def test_a_share_for_another_models_size_is_told() -> None:
    """DeepScaleR's 0.85 beside the states of 8 billion parameters."""
    assert not any("needs" in line for line in warned("7b"))
    line = next(line for line in warned("7b", "grpo_deepscaler.rollout_gpu_memory_utilization=0.85") if "needs" in line)
    assert (
        line == "grpo_deepscaler: needs 80 of 80 GiB of a GPU's memory: while answers are written rollout engine 67.7,"
        " weights, moments 11.3, context 1.5"
    )


@pytest.mark.parametrize(
    ("change", "node"),
    [
        ("vlm.micro_batch_size=16", "vlm"),
        ("grpo_deepscaler.micro_batch_size=8", "grpo_deepscaler"),
        ("sft_reason.micro_batch_size=16", "sft_reason"),
        ("pretrain_1.micro_batch_size=64", "pretrain_1"),
    ],
)
def test_what_does_not_fit_a_small_card_is_told_before_the_run(change: str, node: str) -> None:
    assert not any("GPU's memory" in line for line in warned("small"))
    assert any(line.startswith(f"{node}: needs ") and "of 24 GiB" in line for line in warned("small", change))


@pytest.mark.parametrize("name", PROFILES)
def test_a_retry_with_less_at_one_time_never_needs_more_memory(name: str) -> None:
    """On several GPUs, where the exchange of gradients says how much of them a GPU holds."""
    profile = profiles.load(name, PIPELINE)
    for node in trainings(profile):
        if profile.resources[node.name].gpus * profile.resources[node.name].nodes == 1:
            continue
        needed, config = [], profile.configs[node.name]
        while config is not None:
            tried = replace(profile, configs={**profile.configs, node.name: config})
            held = memory.of_profile(tried, PIPELINE, 80 * GIB)[node.name]
            needed.append(sum(held.parts.values()))
            config = node.smaller(config)
        assert needed == sorted(needed, reverse=True), node.name
        assert len(needed) > 1 or node.name != "vlm"


def test_measuring_a_parent_fits() -> None:
    """64 answers of 24,576 tokens in float32 were 77 GB of keys and values, one tensor 60 GB."""
    for name in PROFILES:
        profile, _, estimates = planned(name)
        for node in trainings(profile):
            held = estimates[node.name].memory
            assert held is not None
            assert node.stage not in ("sft", "dpo", "grpo") or 0 < held.measuring < 0.5 * held.card


def test_every_training_node_has_a_time_and_a_month_is_warned_of() -> None:
    """AReaL's 400 steps on one machine."""
    profile, plans, estimates = planned("7b")
    for node in trainings(profile):
        one = estimates[node.name]
        assert one.seconds > 60, node.name
        assert one.dollars == pytest.approx(one.gpu_hours * 2.4)
    days = estimates["grpo_areal"].seconds / 86_400
    lines = cost.warnings(plans, profile, estimates)
    assert days > 60
    assert f"grpo_areal: would take {days:,.0f} days on 8 GPUs" in lines
    assert any(line.startswith("pretrain_1: would take ") and line.endswith("on 64 GPUs") for line in lines)
    assert not any(line.startswith("sft_tulu: would take") for line in lines)


def test_every_data_node_has_bytes_disk_and_a_time_and_fits_its_machine() -> None:
    """30 of 35 nodes had no estimate; ten could not run, for want of disk."""
    profile, plans, estimates = planned("7b")
    stages = ("ingest", "dedup", "quality", "tokenize", "contamination", "conversations", "preferences", "image_data")
    data = [plan.node for plan in plans if plan.node.stage in stages]
    assert len(data) == 17
    for node in data:
        one, asked = estimates[node.name], profile.resources[node.name]
        assert one.scale is not None
        assert one.seconds > 10, node.name
        assert one.core_hours > 0, node.name
        assert not one.scale.unknown, node.name
        assert 0 < one.scale.disk <= asked.scratch_gib * 2**30, node.name
        assert one.scale.memory <= asked.memory_gib * 2**30, node.name
    lines = cost.limits(plans, profile, estimates)
    assert not refused("7b")
    assert not [line for line in lines if "local disk" in line or "of memory" in line]
    tokens = sum(estimates[f"tokenize_{name}"].scale.outputs["shards"]["tokens"] for name in ("short", "long"))  # type: ignore[union-attr]
    assert 1e12 < tokens < 2e12
    assert "assumed: RefinedWeb's rules keep 23% of pages" in cost.assumptions(estimates)


def test_every_fifth_row_has_a_fifth_of_the_images() -> None:
    """`small` counted all images, and warned of disk that its nodes never need."""
    fifth = planned("small")[2]["scenes"].scale
    assert fifth is not None
    assert fifth.outputs["train"]["images"] == 76_000
    assert not [line for line in warned("small") if "local disk" in line]


def test_a_limit_that_is_reached_is_said_by_the_plan() -> None:
    """3 TB of Bloom filter, and more documents than 2^32 in one partition."""
    (one,) = refused("7b", "dedup_web.partitions=1")
    assert one.startswith("dedup_web.bloom_memory_gib = 1000: a filter for 15,065.0 GB of text")
    many = refused("7b", "dedup_web.partitions=1", "ingest_web.heuristics=none")
    assert any("13,100,000,000 documents" in line and line.endswith("set 4 or more") for line in many)
    assert any("quality_web.scratch_gib = 1" in line for line in warned("7b", "resources.quality_web.scratch_gib=1"))
    assert any(
        "tokenize_short: needs" in line and "of memory" in line
        for line in warned("7b", "resources.tokenize_short.memory_gib=8")
    )


def test_no_warm_up_is_a_tenth_of_its_phase() -> None:
    """Upstream's 2,000 steps would be a fifth of phase 3."""
    for name in PROFILES:
        assert not any("warmup_steps" in line for line in warned(name))
    assert "pretrain_3: warmup_steps = 2000 are 20% of its 9,765 steps" in warned("7b", "pretrain_3.warmup_steps=2000")


def test_what_a_broken_attempt_loses_is_told() -> None:
    profile, plans, estimates = planned("7b")
    lines = [line for line in cost.warnings(plans, profile, estimates) if "broken attempt" in line]
    areal = estimates["grpo_areal"]
    assert areal.lost_seconds == pytest.approx(areal.seconds * 20 / 400)
    assert any(
        line.startswith("grpo_areal: a broken attempt goes on from ") and line.endswith("lost at most")
        for line in lines
    )
    assert estimates["pretrain_1"].lost_seconds == pytest.approx(estimates["pretrain_1"].seconds * 1000 / 1_464_843)
    assert not any(line.startswith("pretrain_1") for line in lines)  # 34 minutes


def test_a_card_that_the_price_list_does_not_know_is_named() -> None:
    from stages.core.errors import ConfigError

    with pytest.raises(
        ConfigError,
        match=r"profile small: card = 'RTX 5', but infra/gpu_prices\.toml has no such card; there are: RTX 4090",
    ):
        planned("small", "card=RTX 5")
    assert cost.prices_of(profiles.load("small", PIPELINE))["gpu"]["peak_tflops"] == 165.2
    assert cost.prices_of(profiles.load("7b", PIPELINE))["gpu"]["memory_gib"] == 79.6


@pytest.mark.parametrize("name", PROFILES)
def test_the_table_beside_the_profiles_is_what_the_plan_says(name: str) -> None:
    profile, _, estimates = planned(name)
    card = cost.prices_of(profile)["gpu"]["memory_gib"] * GIB
    found = memory.of_profile(profile, PIPELINE, card)
    assert list(found) == [node.name for node in trainings(profile)]
    for node, one in found.items():
        assert one == estimates[node].memory
    rows = memory.table(profile, PIPELINE, card).splitlines()
    first = next(iter(found.values()))
    assert f"**{sum(first.parts.values()) / GIB:.1f}**" in rows[2]
