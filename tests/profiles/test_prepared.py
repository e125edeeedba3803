"""What an engine finds before it starts, for every node of `small` and `7b` that has one, at the real size: the
parent's folder, the
command line, its environment; and what its image must hold for that.

The stages' own functions prepare it, up to the moment at which the engine's program would be started. The parent is
sparse: 32 GB of weights that lie nowhere, so that a copy of them would be seen on the disk.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from flows import retry
from stages.core.context import LocalArtifact
from stages.core.errors import ExitClass
from stages.core.graph import Node
from stages.core.interpreters import variable
from stages.core.selfcheck import ENGINES
from stages.core.testing import LocalContext
from stages.grpo.run import ENGINES as RL_ENGINES
from stages.lib.engines import open_instruct, process
from stages.lib.formats.vocabulary import SPECIAL
from stages.lib.modeling.shape import ModelShape
from stages.pipeline import PIPELINE
from tests.support.node_jobs import loaded
from tests.support.paths import ROOT
from tests.support.profile_plans import PROFILES, planned, trainings
from tests.support.sparse_model import disk_bytes, sparse_parent

ENTRIES = 32_000
DRIVEN = [
    (name, node.name)
    for name in PROFILES
    for node in trainings(loaded(name, "slurm"))
    if getattr(loaded(name, "slurm").configs[node.name], "engine", "torch") in ("open-instruct", "verl", "areal")
]
BEGINS = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
}


class Started(Exception):
    """Where an engine would have been started."""

    def __init__(self, command: list[str], env: Mapping[str, str]) -> None:
        super().__init__("started")
        self.command, self.env = command, env


def surprising(parent: Path) -> Path:
    """Add what a parent may say that must not reach a training: dropout, a cache, a tokenizer that begins rows by
    itself.
    """
    config = json.loads((parent / "config.json").read_text())
    (parent / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.1, "use_cache": True}))
    tokenizer = {"post_processor": BEGINS, "padding": {"length": 8}, "truncation": {"max_length": 8}}
    (parent / "tokenizer.json").write_text(json.dumps(tokenizer))
    (parent / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True, "pad_token": "[PAD]"}))
    return parent


def start(name: str, node: Node, root: Path, parent: Path, monkeypatch: pytest.MonkeyPatch) -> Started:
    """Let the stage's own code prepare its engine, and stop it where the engine would be started."""
    profile = loaded(name, "slurm")
    config: Any = profile.configs[node.name]
    monkeypatch.setenv(variable(config.engine), sys.executable)

    def run(ctx: Any, engine: str, command: list[str], *, env: Mapping[str, str], **others: Any) -> None:
        raise Started(list(map(str, command)), env)

    monkeypatch.setattr(process, "run", run)
    inputs = {"parent": [LocalArtifact(parent, {"vocab_size": ENTRIES}, {})]}
    ctx: Any = LocalContext(root, config, inputs, node.name, nproc_per_node=profile.resources[node.name].gpus)
    with pytest.raises(Started) as caught:
        prepare(ctx, node)
    return caught.value


def prepare(ctx: Any, node: Node) -> None:
    """As the stage's run.py does it. The model stays empty: it is filled when the engine has ended."""
    config, model = ctx.config, torch.nn.Module()
    if config.engine == "open-instruct":
        recipe = open_instruct.sft_recipe(config) if node.stage == "sft" else open_instruct.dpo_recipe(config)
        open_instruct.train(ctx, model, recipe, [{"messages": []}] * config.global_batch_size, None)
    else:
        row = {"prompt": "what", "prompt_ids": [5], "ids": [5], "answer": "1", "index": 0}
        RL_ENGINES[config.engine].reinforce(ctx, model, lambda number: [row], None)


def parameters(shape: ModelShape) -> int:
    return shape.parameters(ENTRIES)


@pytest.mark.parametrize(("name", "node"), DRIVEN)
def test_what_an_engine_is_handed(name: str, node: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our program around upstream's, no cache, no dropout of the parent's, its type, no token by itself."""
    from transformers import AutoConfig, AutoModelForCausalLM

    profile = loaded(name, "slurm")
    config: Any = profile.configs[node]
    shape = profile.configs["pretrain_3"].shape  # type: ignore[attr-defined]
    parent = surprising(sparse_parent(tmp_path / "parent", shape, ENTRIES, "BF16"))
    started = start(name, PIPELINE[node], tmp_path / "run", parent, monkeypatch)
    (folder,) = (tmp_path / "run" / "scratch").glob("*/parent")

    assert any(str(folder) in word for word in started.command) or str(folder) in _files(folder.parent)
    written = json.loads((folder / "config.json").read_text())
    expected = {"attention_dropout": config.attention_dropout, "use_cache": False}
    expected |= {"torch_dtype": "bfloat16", "dtype": "bfloat16"}
    assert written == {**json.loads((parent / "config.json").read_text()), **expected}
    assert config.attention_dropout == 0.0
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    assert (tokenizer["post_processor"], tokenizer["padding"], tokenizer["truncation"]) == (None, None, None)
    told = json.loads((folder / "tokenizer_config.json").read_text())
    assert (told["add_bos_token"], told["add_eos_token"], told["pad_token"]) == (False, False, SPECIAL[0])

    loaded_config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(loaded_config)
    assert sum(p.numel() for p in model.parameters()) == parameters(shape)
    assert {layer.self_attn.attention_dropout for layer in model.model.layers} == {0.0}
    weights = folder / "model.safetensors"
    assert weights.samefile(parent / "model.safetensors")
    assert weights.stat().st_size > 2 * parameters(shape)
    assert disk_bytes(tmp_path) < 4 << 20, "the weights were copied"


def _files(folder: Path) -> str:
    """The settings files that an engine reads, as one text."""
    files = [p for p in folder.rglob("*") if p.suffix in (".json", ".yaml", ".yml") and "parent" not in p.parts]
    return "\n".join(p.read_text(encoding="utf-8") for p in files)


@pytest.mark.parametrize(("name", "node"), DRIVEN)
def test_an_engines_program_is_ours_around_upstreams(
    name: str, node: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DPO's own program alone ends in a NameError; ours sets what upstream's `__main__` would."""
    profile = loaded(name, "slurm")
    config: Any = profile.configs[node]
    parent = surprising(sparse_parent(tmp_path / "parent", ModelShape(layers=1), ENTRIES))
    started = start(name, PIPELINE[node], tmp_path / "run", parent, monkeypatch)
    assert started.command[0] == sys.executable
    assert started.env["HOME"], "an engine's caches have a place"
    if config.engine == "open-instruct":
        assert str(open_instruct.PROGRAM) in started.command
        assert open_instruct.PROGRAM.is_file()
        program = started.command[started.command.index(str(open_instruct.PROGRAM)) + 1]
        assert program == {"sft": "finetune", "dpo": "dpo_tune_cache"}[PIPELINE[node].stage]
        gpus = profile.resources[node].gpus
        assert started.command[started.command.index("--num_processes") + 1] == str(gpus)
        assert "bf16" in json.loads((tmp_path / "run/scratch/open-instruct/deepspeed.json").read_text())


@pytest.mark.parametrize("name", PROFILES)
def test_the_memory_sum_counts_the_weights_that_are_handed_over(name: str, tmp_path: Path) -> None:
    """The plan's parts against the parent's own header, and within the card."""
    profile, _, estimates = planned(name)
    shape = profile.configs["pretrain_3"].shape  # type: ignore[attr-defined]
    file = sparse_parent(tmp_path / "parent", shape, ENTRIES, "BF16") / "model.safetensors"
    with open(file, "rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    weights = sum(end - begin for begin, end in (row["data_offsets"] for row in header.values()))
    assert weights == 2 * parameters(shape)
    for node in trainings(profile):
        held, gpus = estimates[node.name].memory, profile.resources[node.name].gpus * profile.resources[node.name].nodes
        assert held is not None
        states = sum(held.parts[part] for part in ("weights", "gradients", "masters, moments"))
        # AdamW: 16 bytes of a parameter, spread over the GPUs; ZeRO-1 keeps weights and gradients (2 + 2) whole
        whole = 2 * weights if getattr(profile.configs[node.name], "engine", "") == "colossalai" else 0
        assert states == pytest.approx(whole + (8 * weights - whole) / gpus, rel=0.02), f"{node.name}: {held.parts}"
        assert held.fits


# --- what its image holds ---------------------------------------------------------------------------------------------


def last_stage(engine: str) -> list[str]:
    """The instructions of a Dockerfile's last stage: what is in the image that runs. Continued lines are joined."""
    text = (ROOT / "containers" / engine / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    first = max(number for number, line in enumerate(lines) if line.startswith("FROM "))
    return [line for line in lines[first:] if line and not line.startswith("#")]


def environment(lines: list[str]) -> dict[str, str]:
    """What ENV sets."""
    words = [word for line in lines if line.startswith("ENV ") for word in line.removeprefix("ENV ").split()]
    return dict(word.split("=", 1) for word in words)


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_an_engines_image_has_what_its_self_check_asks_for(engine: str) -> None:
    """A C compiler, and CUDA_HOME with a compiler and headers in it, where the program makes kernels."""
    lines, toolchain = last_stage(engine), (ROOT / "containers" / "toolchain.sh").read_text(encoding="utf-8")
    env = environment(lines)
    assert variable(engine) in env
    (tools,) = [line for line in lines if "toolchain.sh" in line and line.startswith("RUN ")]
    assert re.search(rf"apt-get install .*\b{env['CC']}\b", toolchain)
    assert "python3.11-dev" in toolchain, "Triton compiles against Python's headers"
    if not ENGINES[engine].compiles:
        assert "CUDA_HOME" not in env
        return
    home = env["CUDA_HOME"]
    copied = any(re.fullmatch(rf"COPY --from=\S+ \S*cuda/? {home}/?", line) for line in lines)
    release = re.search(r"toolchain\.sh (\d+\.\d+)", tools)
    assert copied or (release and f" {home}\n" in toolchain), f"{home} is in no layer of the image"
    assert not (copied and release), "CUDA comes from one place"


def test_every_engine_of_the_profiles_has_an_image() -> None:
    engines = {
        getattr(profile.configs[node.name], "engine", "torch")
        for profile in (loaded(name, "slurm") for name in PROFILES)
        for node in trainings(profile)
    }
    assert engines - {"torch", "trl"} <= ENGINES.keys()


# --- how often it may be stopped --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROFILES)
def test_a_time_limit_of_a_day_uses_up_no_retry_of_what_saves(name: str) -> None:
    """Five retries were gone after five days, of a node that takes a month."""
    profile, _, estimates = planned(name)
    for node in trainings(profile):
        tries = retry.Tries()
        for _ in range(int(estimates[node.name].seconds // 86_400) + 10):
            verdict = retry.judge(ExitClass.PREEMPTED, True, tries, profile.settings.retries, profile.settings.patience)
            assert verdict.again, f"{node.name}: {verdict.why}"
            tries = verdict.tries
        assert tries.used == 0
    stuck = retry.Tries()
    for number in range(profile.settings.retries + 1):
        verdict = retry.judge(ExitClass.PREEMPTED, False, stuck, profile.settings.retries, profile.settings.patience)
        assert verdict.again == (number < profile.settings.retries)
        stuck = verdict.tries
