"""A profile's rehearsal: what stays, what shrinks, what stands for what."""

from __future__ import annotations

from typing import Any

import pytest

from flows import profiles
from flows.rehearsal.derive import Derived, Machine, derive
from stages.core.errors import ConfigError
from stages.core.shrinking import Level
from stages.pipeline import PIPELINE

BARE, FULL = Machine(cores=2, memory_gib=16, cards=0), Machine(cores=64, memory_gib=512, cards=8)


def derived(
    name: str = "7b", level: Level = "wiring", machine: Machine = BARE, processors: bool = False, set: Any = ()
) -> Derived:
    return derive(profiles.load(name, PIPELINE, set), PIPELINE, level, machine, processors)


def test_on_a_cluster_the_kinds_of_machines_stay_and_two_of_them_are_enough() -> None:
    rehearsal = derived()
    pretrain = rehearsal.profile.resources["pretrain_1"]
    assert (pretrain.nodes, pretrain.gpus, pretrain.memory_gib) == (2, 8, 512)
    assert rehearsal.stand_ins["pretrain_1"] == ("2 of 8 machines",)
    config: Any = rehearsal.profile.configs["pretrain_1"]
    assert (config.engine, config.precision, config.parallel.zero) == ("colossalai", "fp16", 1)
    assert config.global_batch_size % 16 == 0
    assert (rehearsal.profile.name, rehearsal.profile.launchers["sft_tulu"]) == ("7b-wiring", "slurm")


def test_without_gpus_a_stage_stands_in_where_its_engine_can_and_is_out_of_reach_where_not() -> None:
    rehearsal = derived(processors=True)
    config: Any = rehearsal.profile.configs["pretrain_1"]
    assert (config.device, config.precision, config.engine) == ("cpu", "fp32", "colossalai")
    assert "precision fp32 for fp16" in rehearsal.stand_ins["pretrain_1"]
    assert sorted(rehearsal.out_of_reach) == [
        "dpo_infinity",
        "dpo_tulu",
        "grpo_areal",
        "grpo_deepscaler",
        "sft_infinity",
        "sft_reason",
        "sft_tulu",
    ]
    assert "open-instruct" in rehearsal.out_of_reach["sft_tulu"]


def test_layers_that_find_room_are_kept_and_named_on_a_processor() -> None:
    rehearsal = derived(level="shape", processors=True)
    config: Any = rehearsal.profile.configs["pretrain_1"]
    assert (config.shape.hidden, config.sequence_length, config.micro_batch_size) == (4096, 2000, 1)
    assert config.shape.layers == 1
    assert "1 of 36 layers: more have no room" in rehearsal.stand_ins["pretrain_1"]


def test_what_measures_a_model_has_a_whole_batch_of_real_shapes() -> None:
    """Of answers, of rows that are read; where the profile asks for less, as it does."""
    configs: Any = derived("tiny", level="shape").profile.configs
    grpo, sft, skills = configs["grpo_deepscaler"], configs["sft_reason"], configs["skills_dpo_tulu"]
    assert (grpo.eval_problems, grpo.eval_samples) == (16_384 // 64 // 2, 2)
    assert (sft.eval_rows, sft.eval_problems) == (16_384 // 192, 16_384 // (192 - 48))
    limits = {task.task: (task.limit, task.repeats) for task in skills.suites[0].tasks}
    assert limits["gsm8k"] == (20, 1)
    assert limits["humaneval"] == (7, 10)
    assert limits["minerva_math"] == (3, 1)
    assert limits["mmlu"] == (4, 1)
    assert configs["evaluate_vlm"].limit == 64
    small: Any = derived("tiny").profile.configs
    assert small["grpo_deepscaler"].eval_problems == 4
    assert {task.limit for task in small["skills_dpo_tulu"].suites[0].tasks} == {1, 2}


def test_what_is_measured_on_one_machine_has_it_alone() -> None:
    """Its times would else be those of two nodes that share processors."""
    assert derived("tiny", level="shape").profile.settings.parallel == 1
    assert derived("tiny").profile.settings.parallel == 2
    assert derived(level="shape").profile.settings.parallel == 3, "Slurm's nodes have machines of their own"


def test_as_many_gpus_as_the_machine_has_in_even_shares() -> None:
    few = derived("small", machine=Machine(cores=16, memory_gib=128, cards=3))
    for name, given in profiles.load("small", PIPELINE).resources.items():
        assert few.profile.resources[name].gpus == (given.gpus if given.gpus <= 3 else given.gpus // 2)
    assert not derived("small", machine=FULL).stand_ins


def test_kinds_of_parallelism_stay_with_processes_for_each() -> None:
    set = (
        "launcher=process",
        "pretrain.parallel.tensor=4",
        "pretrain.parallel.pipeline=2",
        "pretrain.micro_batch_size=1",
        "resources.pretrain.nodes=1",
    )
    rehearsal = derived(set=set)
    config: Any = rehearsal.profile.configs["pretrain_1"]
    assert (config.parallel.tensor, config.parallel.pipeline) == (2, 2)
    assert rehearsal.profile.resources["pretrain_1"].ranks == 4
    assert config.global_batch_size // 4 >= 1


def test_a_rule_that_makes_no_valid_configuration_is_told_with_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.sft.spec import SftConfig

    monkeypatch.setattr(SftConfig, "rehearsed", lambda self, values, rehearsal: values | {"epochs": 0})
    with pytest.raises(ConfigError, match=r"the wiring rehearsal of sft_tulu: .*greater than 0"):
        derived("tiny")
