"""Of every node of every profile, on every launcher: processes that the launcher starts x those that each of them
starts = GPUs asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flows import profiles
from flows.launch import base, kubernetes_manifests, launcher, process, slurm_scripts
from flows.launch.base import Job
from flows.settings import Settings
from stages.core.errors import ConfigError
from stages.core.graph import Node
from stages.core.resources import Processes
from stages.pipeline import PIPELINE
from tests.support.node_jobs import LAUNCHERS, STORE, command_of, job_of, loaded


def started_by_torchrun(words: Sequence[str]) -> int:
    """Processes that such a command starts, over all nodes; 1 without torchrun."""
    if "torch.distributed.run" not in words:
        return 1
    options = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
    return int(options["--nnodes"]) * int(options["--nproc-per-node"])


def started_by_engine(node: Node, config: Any, given: int, folder: Path) -> int:
    """Processes that a stage's own engine starts, read off what the engine itself is handed. given: what the launcher
    told it.
    """
    engine = getattr(config, "engine", "")
    if engine == "open-instruct":
        from stages.lib.engines import open_instruct

        recipe = open_instruct.sft_recipe(config) if node.stage == "sft" else open_instruct.dpo_recipe(config)
        words = open_instruct.arguments(config, recipe, folder, given)
        accumulated = int(words[words.index("--gradient_accumulation_steps") + 1])
        start = open_instruct.launch("python", given, folder)
        found = int(start[start.index("--num_processes") + 1])
        assert accumulated * config.micro_batch_size * found == config.global_batch_size, "the batch is the recipe's"
        return found
    if engine == "verl":
        from stages.lib.engines import verl

        return verl.overrides(config, 0, folder, folder, given)["trainer.n_gpus_per_node"]
    if engine == "areal":
        from stages.lib.engines import areal

        found = areal.settings(config, 0, folder, folder, given)
        parts = [int(found[name]["backend"].rpartition("d")[2]) for name in ("actor", "rollout")]
        assert sum(parts) == found["cluster"]["n_gpus_per_node"], "half write, half train"
        return sum(parts)
    return 1


# 7b: its engines import PyTorch
@pytest.mark.parametrize("name", ["tiny", "small", pytest.param("7b", marks=pytest.mark.slow)])
@pytest.mark.parametrize("by", LAUNCHERS)
def test_as_many_processes_as_gpus_and_never_more(name: str, by: str, tmp_path: Path) -> None:
    profile = loaded(name, by)
    for node in PIPELINE:
        config, resources = profile.configs[node.name], profile.resources[node.name]
        job = job_of(node, profile)
        told = int(base.public_environment(job)["MOXIN_NPROC_PER_NODE"])
        launched = started_by_torchrun(command_of(job, by))
        engines = started_by_engine(node, config, told, tmp_path)
        asked = resources.nodes * (resources.gpus or resources.nproc_per_node)
        assert launched * engines == asked, (
            f"{node.name} of {name} on {by}: {launched} x {engines} processes for {asked}"
        )
        assert launched == 1 or engines == 1, f"{node.name} of {name} on {by}: processes of processes"


def test_7b_trains_on_all_its_gpus() -> None:
    """64 for pre-training, 8 for each that has an engine: the numbers themselves, not only that they agree."""
    profile = loaded("7b", "slurm")
    found = {node.name: started_by_torchrun(command_of(job_of(node, profile), "slurm")) for node in PIPELINE}
    assert {name for name, count in found.items() if count > 1} == {"pretrain_1", "pretrain_2", "pretrain_3", "vlm"}
    assert {found[f"pretrain_{n}"] for n in (1, 2, 3)} == {64}
    assert found["vlm"] == 8
    driven = [node.name for node in PIPELINE if node.processes(profile.configs[node.name]) is Processes.ENGINE]
    assert {profile.resources[name].ranks for name in driven} == {8}
    assert {"sft_tulu", "dpo_tulu", "grpo_deepscaler", "grpo_areal"} <= set(driven)


@pytest.mark.parametrize("by", LAUNCHERS)
def test_an_engine_is_told_of_its_gpus_on_every_launcher(by: str, tmp_path: Path) -> None:
    node = next(node for node in PIPELINE if node.name == "sft_tulu")
    assert environment_of(job_of(node, loaded("7b", by)), by, tmp_path)["MOXIN_NPROC_PER_NODE"] == "8"


def environment_of(job: Job, by: str, folder: Path) -> dict[str, str]:
    """The variables in what the launcher really hands over: environment, script, container or pod."""
    settings = Settings(folder, STORE, "http://127.0.0.1:1/api", True, False)
    if by == "process" or by == "docker":
        return launcher(by, settings)._environment(job)  # type: ignore[attr-defined, no-any-return]
    if by == "slurm":
        script = slurm_scripts.script(job, slurm_scripts.Site(), folder / "x", "mark", folder / "scratch")
        return dict(re.findall(r"^export (\w+)=(.+)$", script, re.MULTILINE))
    return {row["name"]: row["value"] for row in pod_of(job)["containers"][0]["env"]}


def pod_of(job: Job) -> dict[str, Any]:
    return kubernetes_manifests.batch_job(job, kubernetes_manifests.Site(), "mark")["spec"]["template"]["spec"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("by", LAUNCHERS)
def test_every_launcher_gives_the_grace_that_is_declared(by: str, tmp_path: Path) -> None:
    """One number: the stage ends itself five seconds before its launcher kills it, and torchrun, whose own limit is
    30 s, not before that.
    """
    node = next(node for node in PIPELINE if node.name == "pretrain_1")
    job = job_of(node, loaded("7b", by, "resources.pretrain_1.grace_seconds=123"))
    told = environment_of(job, by, tmp_path)
    assert (told["MOXIN_GRACE_SECONDS"], told["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) == ("118", "123")
    if by == "slurm":
        options = slurm_scripts.options(job, slurm_scripts.Site(), tmp_path / "x", "mark")
        assert options["signal"] == "TERM@123"
    if by == "kubernetes":
        assert pod_of(job)["terminationGracePeriodSeconds"] == 123


@pytest.mark.slow  # PyTorch
def test_torchrun_reads_the_variable_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the stage reads the other one: tests/fault/test_runtime_process.py."""
    from torch.distributed.launcher.api import LaunchConfig

    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "77")
    assert LaunchConfig(1, 1, 1, rdzv_endpoint="h:1").shutdown_timeout == 77


def test_the_stage_reads_what_the_launcher_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.core.registry import find_stage
    from stages.core.runtime_context import RuntimeContext

    profile = loaded("7b", "slurm")
    job = job_of(next(node for node in PIPELINE if node.name == "dpo_tulu"), profile)
    monkeypatch.setenv("MOXIN_NPROC_PER_NODE", base.public_environment(job)["MOXIN_NPROC_PER_NODE"])
    context = RuntimeContext(json_copy(job), find_stage("dpo"), None, None, tmp_path)  # type: ignore[arg-type]
    assert context.nproc_per_node == 8


def json_copy(job: Job) -> Any:
    """The request as it crosses the container's boundary."""
    return type(job.request).model_validate(json.loads(job.request.model_dump_json()))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "7b",
            "sft_tulu.engine=trl",
            r"resources\.sft_tulu\.gpus = 8, but stage 'sft' with engine 'trl' is one process: set 1",
        ),
        (
            "7b",
            "resources.sft_tulu.nodes=2",
            r"resources\.sft_tulu\.nodes = 2, but stage 'sft' with engine 'open-instruct' works on one node: set 1",
        ),
        (
            "7b",
            "launcher=docker",
            (
                r"resources\.pretrain_1\.nodes = 8, but launcher 'docker' knows one machine alone: set 1, or"
                r" launchers\.pretrain_1 to slurm"
            ),
        ),
        ("7b", "resources.grpo_areal.gpus=3", r"resources\.grpo_areal\.gpus = 3: engine 'areal' writes on one half"),
        (
            "7b",
            "resources.pretrain_1.nodes=7",
            r"pretrain_1\.global_batch_size = 512 cannot be shared evenly by 56 parts",
        ),
        ("7b", "resources.vlm.gpus=7", r"vlm\.global_batch_size = 128 cannot be shared evenly by 7 parts"),
        ("7b", "resources.pretrain_1.nproc_per_node=4", r"nproc_per_node = 4, but gpus = 8: a GPU has one process"),
        (
            "7b",
            "resources.evaluate_original.gpus=0",
            r"evaluate_original\.device = 'cuda', but resources\.evaluate_original\.gpus = 0",
        ),
        (
            "small",
            "pretrain_1.device=cpu",
            r"pretrain_1\.device = 'cpu', but resources\.pretrain_1\.gpus = 1: set 0, or another device",
        ),
        (
            "tiny",
            "resources.evaluate_original.nproc_per_node=2",
            r"nproc_per_node = 2, but stage 'evaluate' with engine 'transformers' is one process: set 1",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused_with_the_plan(name: str, change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        profiles.load(name, PIPELINE, [change])


def test_processes_on_cpus_are_asked_for_in_one_place() -> None:
    profile = profiles.load("tiny", PIPELINE, ["resources.pretrain_1.nproc_per_node=2"])
    job = job_of(next(node for node in PIPELINE if node.name == "pretrain_1"), profile)
    assert started_by_torchrun(process.command(job, Path("/r"))) == 2
