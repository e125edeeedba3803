"""Main memory of a machine that trains on GPUs: which moment holds the most, and what a plan says of it."""

from __future__ import annotations

import pytest

from flows import host_memory, profiles
from flows.memory import GIB
from stages.core.resources import Resources
from stages.pipeline import PIPELINE
from tests.support.profile_plans import warned

P = 8_114_180_096


@pytest.mark.parametrize(
    ("node", "resources", "parts"),
    [
        ("pretrain_1", Resources(gpus=8, nodes=8), {"copy for a checkpoint": 12 * P / 8}),
        ("pretrain_1", Resources(gpus=1), {"copy for a checkpoint": 12 * P}),
        (
            "grpo_deepscaler",
            Resources(gpus=8),
            {"weights in each process": 16 * P, "parent": 4 * P, "reference": 4 * P},
        ),
        ("sft_tulu", Resources(gpus=8), {"weights in each process": 16 * P, "parent": 4 * P}),
    ],
)
def test_the_moment_that_holds_the_most(node: str, resources: Resources, parts: dict[str, float]) -> None:
    config, stage = profiles.load("7b", PIPELINE).configs[node], PIPELINE.nodes[node].stage
    held = host_memory.needed(stage, config, resources, P)
    assert held == {"processes": host_memory.PROCESS * resources.gpus, **parts}


def test_offloaded_moments_lie_there() -> None:
    config = profiles.load("7b", PIPELINE, ("pretrain_1.parallel.offload=true",)).configs["pretrain_1"]
    held = host_memory.needed("pretrain", config, Resources(gpus=2), P)
    assert held["offloaded masters, moments"] == 12 * P


def test_only_gemini_begins_with_the_whole_model_in_each_process() -> None:
    changes = ("pretrain_1.engine=colossalai", "pretrain_1.parallel.zero=3", "pretrain_1.device=cuda")
    config = profiles.load("7b", PIPELINE, changes).configs["pretrain_1"]
    held = host_memory.needed("pretrain", config, Resources(gpus=8, nodes=8), P)
    assert held["whole model in each process"] == 32 * P


def test_a_machine_that_is_too_small_is_told() -> None:
    line = next(line for line in warned("7b", "resources.pretrain_1.memory_gib=32") if "main memory" in line)
    saved, processes = 12 * P / 8 / GIB, 24.0
    assert line == (
        f"pretrain_1: needs {saved + processes:.1f} GiB of main memory, but resources.pretrain_1.memory_gib = 32:"
        f" processes {processes:.1f}, copy for a checkpoint {saved:.1f}"
    )
