"""Engine verl: its settings, data, reward, log, phases, merge, resume. The program is a stand-in; the settings are
composed for real.
"""

from __future__ import annotations

import json
import math
import numbers
import pprint
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from flows import memory, profiles
from stages.core.context import LocalArtifact
from stages.core.errors import ConfigError, Preempted
from stages.core.resources import Resources
from stages.core.testing import LocalContext
from stages.grpo import run as grpo_run
from stages.grpo.spec import Grpo, GrpoConfig
from stages.lib.engines import context_phases, process, verl
from stages.lib.engines.programs.reward import compute_score
from stages.lib.finetuning import inference_memory
from stages.lib.modeling.shape import ModelShape
from stages.pipeline import PIPELINE
from tests.support import engines, standins, tuning
from tests.support.paths import DATA

STANDINS = Path(standins.__file__).parent
Inputs = dict[str, list[LocalArtifact]]
RECIPE = {"engine": "verl", "device": "cuda", "recompute": "full", "checkpoint_every": 20}
SMALL: dict[str, Any] = {"engine": "verl", "device": "cuda", **tuning.TWO_PHASES}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return tuning.sums(tmp_path_factory.mktemp("verl"))


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return tuning.stand_in(tmp_path, monkeypatch, "verl", STANDINS / "verl.py")


def recipe(number: int) -> dict[str, Any]:
    return verl.overrides(GrpoConfig(**RECIPE), number, Path("FOLDER"), Path("MODEL"), 8)


def test_the_recipes_settings_are_the_recorded_ones_and_verls_own() -> None:
    known = json.loads((DATA / "verl_settings.json").read_text())
    assert known["version"] == verl.VERSION
    for number, recorded in enumerate(known["recipe"]):
        given = recipe(number)
        assert given.pop("reward.custom_reward_function.path") == str(verl.REWARD)
        assert given == recorded
        assert {name for name in given if not name.startswith("+")} <= known["settings"].keys()
    lengths = [r["data.max_response_length"] for r in known["recipe"]]
    groups = [r["actor_rollout_ref.rollout.n"] for r in known["recipe"]]
    assert (lengths, groups) == ([8192, 16384, 24576], [8, 16, 16])  # docs/recipe.md


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What verl's wheel holds (1.7 MB from the package index)."""
    return engines.wheel(tmp_path_factory.mktemp("upstream"), f"verl=={verl.VERSION}")


@pytest.mark.slow  # makes an environment with hydra-core: some 20 seconds
def test_the_settings_compose_with_the_configuration_that_verl_ships(tmp_path: Path, upstream: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    venv.create(tmp_path / "venv")
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([*pip, "--python", python, "install", "hydra-core==1.3.8"], check=True)
    shipped = upstream / "verl" / "trainer" / "config"
    for number in range(3):
        given = {
            **recipe(number),
            "data.train_files": "/a folder/(x)=[1],{2}/train.parquet",
        }  # what Hydra's grammar gives a meaning
        (tmp_path / "overrides.json").write_text(json.dumps(verl.words(given)))
        command = [python, str(STANDINS / "compose.py"), str(shipped), str(tmp_path / "overrides.json")]
        composed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for name, value in given.items():
            found: Any = composed
            for part in name.removeprefix("+").split("."):
                found = found[part]
            assert found == value, name
        trained = composed["actor_rollout_ref"]["actor"]["fsdp_config"]  # which verl's FSDP engine reads
        assert trained["entropy_from_logits_with_chunking"]
        assert trained["entropy_checkpointing"]


@pytest.mark.slow
def test_a_line_of_verls_own_logger_is_read(upstream: Path) -> None:
    line = engines.definition(
        upstream / "verl" / "utils" / "logger" / "aggregate_logger.py",
        "concat_dict_to_str",
        numbers=numbers,
        pprint=pprint,
    )
    data = dict(
        zip(verl.METRICS, (0.5, np.float64(1e-06), np.float32(0.25), -1.5e-05, 2, np.float64("nan")), strict=False)
    )
    others = {
        "timing_s/step": 12.5,
        "training/global_step": 7,
        "val-core/moxin/acc/mean@1": np.float64(0.5),
        "note": "text is left out",
    }
    found = verl.Verl().read(f"(TaskRunner pid=12) {line({**others, **data}, 7)}")
    assert found is not None
    step, row = found
    assert step == 7
    assert row.keys() == {mine for theirs, mine in verl.METRICS.items() if theirs in data}
    assert [row[name] for name in ("loss", "learning_rate", "grad_norm", "kl", "entropy")] == [
        0.5,
        1e-06,
        0.25,
        -1.5e-05,
        2.0,
    ]
    assert math.isnan(row["clip_fraction"])


def test_the_papers_model_fits_a_card_of_80_gb_while_it_writes_and_while_it_learns() -> None:
    """From the second batch on, when the optimizer's moments are there and vLLM wakes up beside them."""
    profile = profiles.load("7b", PIPELINE)
    config, resources, card = profile.configs["grpo_deepscaler"], profile.resources["grpo_deepscaler"], 80_000_000_000
    assert isinstance(config, GrpoConfig)
    takes = memory.of_node("grpo", config, resources, ModelShape(), 32_000, card)
    assert takes is not None
    assert takes.total < 0.9 * card
    wider = config.model_copy(update={"rollout_gpu_memory_utilization": 0.85})
    writing = memory.of_node("grpo", wider, resources, ModelShape(), 32_000, card)
    assert writing is not None
    assert sum(writing.other.values()) > card
    room = config.rollout_gpu_memory_utilization * card - 2 * ModelShape().parameters(32_000)
    assert room > 10 * inference_memory.cache_bytes(ModelShape(), config.longest, "bf16")  # what vLLM writes with


def test_phases_become_a_model(tmp_path: Path, artifacts: Inputs, standin: Path) -> None:
    ctx = LocalContext(tmp_path / "run", GrpoConfig(**SMALL), artifacts)
    grpo_run.run(ctx)
    first, second = tuning.runs(standin)
    assert (len(first["rows"]), len(second["rows"])) == (8, 12)
    row = first["rows"][0]
    assert row["prompt"][0]["role"] == "user"
    assert row["reward_model"] == {"style": "rule", "ground_truth": str(int(row["prompt"][0]["content"][0]) + 1)}
    asked = [r["prompt"][0]["content"] for r in first["rows"] + second["rows"]]
    assert len(set(asked[:9])) == 9  # a permutation that runs on through the phases
    assert second["settings"]["actor_rollout_ref.model.path"].endswith("phase-0/start")
    assert [m["step"] for m in ctx.metrics] == [1, 2, 3, 4, 5]
    assert ctx.metrics[0] == {
        "step": 1,
        "loss": 0.5,
        "learning_rate": 1e-6,
        "grad_norm": 0.15,
        "kl": 0.001,
        "reward": 0.5,  # half of the stand-in's responses are right: the verifier said so, in another process
        "response_length": 12.0,
        "truncated": 0.25,
    }
    parent = load_file(artifacts["parent"][0].path / "model.safetensors")
    child = load_file(ctx.output("model") / "model.safetensors")
    for name, tensor in parent.items():
        assert torch.equal(child[name], ((tensor + 0.5).bfloat16().float() + 0.5).bfloat16().float())
    assert {p.suffix for p in ctx.output("model").iterdir()} <= {".safetensors", ".json", ".jinja", ".md", ".jsonl"}


@pytest.mark.parametrize(
    ("stop_after", "wait", "resumed", "steps"),
    [(1, "phase-0:1", [1, 0], [2, 3, 4, 5]), (2, "phase-0:2", [0], [3, 4, 5]), (4, "phase-1:2", [2], [5])],
)
def test_it_goes_on_from_its_checkpoint(
    tmp_path: Path,
    artifacts: Inputs,
    standin: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_after: int,
    wait: str,
    resumed: list[int],
    steps: list[int],
) -> None:
    """Inside the first phase, at its end, and inside the second, whose start travels with the checkpoint."""
    monkeypatch.setenv("STANDIN", wait)
    broken = tuning.Stopping(tmp_path / "run", GrpoConfig(**SMALL), artifacts)
    broken.after = stop_after
    with pytest.raises(Preempted):
        grpo_run.run(broken)
    found = broken.checkpoints.latest()
    assert found is not None
    assert found[0] == stop_after
    (tmp_path / "run" / "scratch" / "verl").rename(tmp_path / "old")
    standin.unlink()
    monkeypatch.setenv("STANDIN", "ok")
    again = LocalContext(tmp_path / "run", GrpoConfig(**SMALL), artifacts)
    grpo_run.run(again)
    assert [r["resumed"] for r in tuning.runs(standin)] == resumed
    assert [m["step"] for m in again.metrics] == steps
    assert [m["step"] for m in broken.metrics] == list(range(1, stop_after + 1))


def test_a_checkpoint_waits_for_the_metrics_of_its_step(tmp_path: Path) -> None:
    """verl and AReaL save and then tell; a stop in between must not lose the row."""
    ctx = LocalContext(tmp_path, GrpoConfig(**SMALL))
    phase = context_phases.PhaseRun(ctx, 0, tmp_path / "phase", tmp_path / "start", sys.executable, {})
    follower = context_phases.Follower(phase, lambda line: (int(line), {"loss": 1.0}))
    keeper = context_phases.Checkpoints(phase, follower)
    (phase.checkpoints / "global_step_1").mkdir(parents=True)
    (phase.checkpoints / "global_step_1" / "weights").touch()
    (phase.checkpoints / context_phases.LATEST).write_text("1")
    keeper.publish()
    assert ctx.checkpoints.latest() is None
    follower("1")
    keeper.publish()
    found = ctx.checkpoints.latest()
    assert found is not None
    assert found[0] == 1


def test_what_an_engine_says_when_it_is_stopped_is_heard(tmp_path: Path) -> None:
    (tmp_path / "talks.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit('\\n'.join(map(str, range(900)))))\n"
        "print('up', flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, str(tmp_path / "talks.py")]
    ctx = LocalContext(tmp_path, GrpoConfig(**SMALL), stop_after=1)
    heard: list[str] = []

    def listen(line: str) -> None:
        heard.append(line)
        ctx.metric(1, loss=1.0)

    with pytest.raises(Preempted):
        process.run(ctx, "x", command, env=process.environment(tmp_path), on_line=listen)
    assert heard == ["up", *map(str, range(900))]


def test_a_crash_says_what_the_engine_said(
    tmp_path: Path, artifacts: Inputs, standin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", "crash")
    with pytest.raises(
        process.EngineError, match=r"verl ended with status 1: ray.exceptions.RayTaskError\(ValueError\)"
    ):
        grpo_run.run(LocalContext(tmp_path / "run", GrpoConfig(**SMALL), artifacts))


def test_the_reward_is_the_verifiers_on_the_recipes_scale() -> None:
    keywords: dict[str, Any] = {"rule": "deepscaler", "right": 5.0, "wrong": -5.0}
    right, wrong = "<think>\n1+1=2.\n</think>\n\\boxed{2}", "\\boxed{2}"
    assert compute_score("moxin", right, "2", None, **keywords) == {"score": 5.0, "acc": 1.0, "format": 1.0}
    assert compute_score("moxin", wrong, "2", {}, **keywords, reward_router_address=None) == {
        "score": -5.0,
        "acc": 0.0,
        "format": 0.0,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"advantage": "batch"}, "engine 'verl' is used here for GRPO: set advantage = 'group'"),
        ({"precision": "fp32"}, "samples with vLLM in bf16"),
        ({"device": "auto"}, "needs GPUs"),
        (
            {"max_tokens_per_gpu": 16_384},
            "max_tokens_per_gpu = 16384 is less than the longest prompt and response, 25600 tokens",
        ),
        ({"grad_clip": 0.0}, "always clips gradients"),
        ({"eps": 1e-5}, "set eps = 1e-08"),
    ],
)
def test_what_verl_cannot_honour_is_refused_with_the_plan(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GrpoConfig(**{**RECIPE, **changes})


def test_a_batch_that_its_gpus_cannot_share_is_refused_with_the_plan() -> None:
    with pytest.raises(
        ConfigError, match=r"^g\.context_phases\.0: 1024 responses are no multiple of resources\.g\.gpus = 3$"
    ):
        Grpo.check_resources("g", GrpoConfig(**RECIPE), Resources(gpus=3))
