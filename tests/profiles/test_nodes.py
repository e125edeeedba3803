"""Every node of `small` and `7b` on every launcher: what is handed over, and the settings that its engine is given."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from flows import memory
from flows.launch import base, kubernetes_manifests, slurm_scripts
from stages.core.messages import StageRequest
from stages.lib.engines import areal, open_instruct, verl
from stages.lib.modeling.decoder import MoxinLM
from stages.pipeline import PIPELINE
from tests.support.node_jobs import LAUNCHERS, command_of, job_of, loaded
from tests.support.profile_plans import PROFILES, trainings
from tests.support.sparse_model import sparse_parent


@pytest.mark.parametrize("by", LAUNCHERS)
@pytest.mark.parametrize("name", PROFILES)
def test_what_a_launcher_is_given_of_every_node(name: str, by: str, tmp_path: Path) -> None:
    """One request, one command, threads for each process, all GPUs."""
    profile = loaded(name, by)
    for node in PIPELINE:
        job, resources = job_of(node, profile), profile.resources[node.name]
        assert StageRequest.model_validate_json(job.request.model_dump_json()) == job.request
        assert node.config_type.model_validate(job.request.config) == profile.configs[node.name]
        words = command_of(job, by)
        assert words.count("stages.core.runtime") == 1
        environment = base.public_environment(job)
        assert int(environment["OMP_NUM_THREADS"]) * resources.ranks <= max(resources.cpus, resources.ranks)
        if by == "kubernetes":
            made = kubernetes_manifests.batch_job(job, kubernetes_manifests.Site(), "mark")
            wanted = made["spec"]["template"]["spec"]["containers"][0]["resources"]
            assert int(wanted["limits"].get("nvidia.com/gpu", 0)) == resources.gpus
            assert made["spec"]["completions"] == resources.nodes
        if by == "slurm" and not slurm_scripts.uses_arrays(job):
            text = slurm_scripts.script(job, slurm_scripts.Site(), tmp_path / "x", "mark", tmp_path / "scratch")
            assert "@EXIT@" not in text
            assert f"#SBATCH --nodes={resources.nodes}\n" in text


@pytest.mark.parametrize("name", PROFILES)
def test_the_settings_of_every_engine(name: str, tmp_path: Path) -> None:
    """What the engines are told, from the profile's own numbers."""
    profile = loaded(name, "slurm")
    for node in trainings(profile):
        config: Any = profile.configs[node.name]
        gpus = profile.resources[node.name].gpus
        engine = getattr(config, "engine", "torch")
        if engine == "open-instruct":
            recipe = open_instruct.sft_recipe(config) if node.stage == "sft" else open_instruct.dpo_recipe(config)
            words = open_instruct.arguments(config, recipe, tmp_path, gpus)
            given = dict(itertools.pairwise(words))
            assert int(given["--max_seq_length"]) == config.max_length
            assert (
                int(given["--per_device_train_batch_size"]) * int(given["--gradient_accumulation_steps"]) * gpus == 128
            )
            assert open_instruct.deepspeed_config(config)["zero_optimization"]["stage"] == 3
        if engine == "verl":
            for number, phase in enumerate(config.context_phases):
                given = verl.overrides(config, number, tmp_path, tmp_path, gpus)
                assert given["data.max_response_length"] == phase.max_response_length
                assert (
                    given["actor_rollout_ref.actor.ppo_max_token_len_per_gpu"]
                    >= config.max_prompt_length + phase.max_response_length
                )
                assert (
                    given["actor_rollout_ref.rollout.gpu_memory_utilization"] == config.rollout_gpu_memory_utilization
                )
        if engine == "areal":
            given = areal.settings(config, 0, tmp_path, tmp_path, gpus)
            assert given["gconfig"]["max_tokens"] == config.longest
            assert given["sglang"]["context_length"] > config.longest  # SGLang refuses a request that could fill it
            assert given["actor"]["disable_dropout"]
            assert given["sglang"]["mem_fraction_static"] == memory.SGLANG
            assert given["rollout"]["request_timeout"] >= 3600


def test_the_parent_of_7bs_fine_tuning_says_nothing_of_dropout(tmp_path: Path) -> None:
    """At the real size: 32 GB of weights that lie nowhere, and a configuration that transformers reads."""
    from safetensors import safe_open
    from transformers import AutoConfig

    profile = loaded("7b", "slurm")
    config: Any = profile.configs["pretrain_3"]
    assert config.dropout == 0.1
    parent = sparse_parent(tmp_path / "parent", config.shape, 32_000)
    assert AutoConfig.from_pretrained(parent).attention_dropout == 0.0
    assert (parent / "model.safetensors").stat().st_size > 4 * 8_114_180_096
    assert (parent / "model.safetensors").stat().st_blocks * 512 < 1 << 20
    with safe_open(parent / "model.safetensors", "np") as file:  # as safetensors itself checks a file
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    with torch.device("meta"):
        model = MoxinLM(config.shape, 32_000)
    assert shapes == {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == config.shape.parameters(32_000)
