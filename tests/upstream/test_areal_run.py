"""AReaL 1.0.4 itself, on the CPU: its classes parse our settings, its actor agrees with transformers and with the
engine `trl`, and its trainer goes through two phases with the verifier as its reward. A small server stands in for
SGLang; nothing else does.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.core.errors import Preempted
from stages.core.testing import LocalContext
from stages.grpo import run as grpo_run
from stages.grpo.rollout import batch_advantages
from stages.grpo.spec import GrpoConfig
from stages.lib.engines import areal
from stages.lib.engines.context_phases import ROOT
from stages.lib.finetuning import model_loading
from stages.lib.formats import chat_template
from tests.support import engines, standins, tuning
from tests.support.areal_settings import RECIPE, SMALL

STANDINS = Path(standins.__file__).parent
QUIET = {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
RUN: dict[str, Any] = {
    **SMALL,
    "context_phases": [
        {"steps": 3, "max_response_length": 32, "num_generations": 8},
        {"steps": 3, "max_response_length": 40, "num_generations": 8},
    ],
    "prompts_per_step": 8,
    "num_mini_batches": 1,
    "learning_rate": 1e-3,
    "temperature": 1.0,
    "max_prompt_length": 32,
    "eval_problems": 8,
    "eval_samples": 8,
    "checkpoint_every": 2,
}
pytestmark = pytest.mark.upstream  # AReaL's environment is installed, and its services start twice: minutes


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engines.interpreter(tmp_path_factory.mktemp("areal") / "venv", "areal_cpu")


def call(python: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    ranks = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29611"}
    variables = {**os.environ, **QUIET, **ranks, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run([str(python), *words], env=variables, capture_output=True, text=True, check=False)


def test_areals_own_classes_take_the_settings(tmp_path: Path, python: Path) -> None:
    given = areal.settings(GrpoConfig(**RECIPE), 0, tmp_path / "a b", tmp_path / "model", 8)
    (tmp_path / "config.yaml").write_text(json.dumps(given))
    script = (
        "import sys, json, dataclasses\n"
        "from areal.api.cli_args import PPOConfig, load_expr_config\n"
        "config, _ = load_expr_config(['--config', sys.argv[1]], PPOConfig)\n"
        "print('PARSED' + json.dumps(dataclasses.asdict(config), default=str))\n"
    )
    done = call(python, "-c", script, str(tmp_path / "config.yaml"))
    parsed = json.loads(done.stdout.partition("PARSED")[2].splitlines()[0])

    def same(ours: Any, theirs: Any, path: str) -> None:
        if isinstance(ours, dict):
            for name, value in ours.items():
                same(value, theirs[name], f"{path}.{name}")
        elif isinstance(ours, list):
            for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
                same(one, other, f"{path}.{number}")
        else:
            assert ours == theirs, path

    same(given, parsed, "config")
    assert parsed["critic"] is None
    assert parsed["actor"]["c_clip"] is None


def test_a_step_agrees_with_transformers_and_with_the_engine_trl(tmp_path: Path, python: Path) -> None:
    """Rows of several lengths, packed into one. Without the repair AReaL fails on MistralForCausalLM."""
    parent = tuning.parent(tmp_path, chat_template.TULU)
    generator = torch.Generator().manual_seed(0)
    rewards = [5.0, -5.0, -5.0, 5.0, -5.0, -5.0]
    rows = [
        {
            "prompt": torch.randint(3, tuning.VOCABULARY, (5 + n,), generator=generator).tolist(),
            "response": torch.randint(3, tuning.VOCABULARY, (3 + 9 * n,), generator=generator).tolist(),
            "reward": reward,
        }
        for n, reward in enumerate(rewards)
    ]
    given = areal.settings(
        GrpoConfig(**{**SMALL, "kl_coef": 0.0, "num_mini_batches": 1}), 0, tmp_path, Path(parent.path), 2
    )
    (tmp_path / "config.yaml").write_text(json.dumps(given))
    (tmp_path / "trajectories.json").write_text(json.dumps(rows))
    broken = call(python, str(STANDINS / "areal_step.py"), str(tmp_path))
    assert broken.returncode != 0
    assert "'dict' object has no attribute" in broken.stderr
    done = call(python, str(STANDINS / "areal_step.py"), str(tmp_path), REPAIR="1")
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "result.json").read_text())
    for wanted, found in zip(result["wanted"], result["logps"], strict=True):
        assert found == pytest.approx(wanted, abs=1e-4)
    assert result["final"] == [-5.0, 5.0]
    lengths = torch.tensor([len(row["response"]) for row in rows])  # type: ignore[arg-type]
    for expected, found in zip(
        batch_advantages(torch.tensor(rewards), lengths).tolist(), result["advantages"], strict=True
    ):
        assert found == pytest.approx([expected] * len(found), abs=1e-4)
    row = areal.metrics(result["stats"], kl_coef=0.0)
    assert row["reward"] == pytest.approx(sum(rewards) / len(rewards))
    assert row["accuracy"] == pytest.approx(2 / 6)
    assert row["response_length"] == pytest.approx(float(lengths.float().mean()))
    assert row["grad_norm"] > 0


def test_areal_trains_through_two_phases_on_the_cpu(
    tmp_path: Path, python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent answers right about half of the time, and says so in the right form: the reward has something to
    prefer.
    """
    inputs = tuning.halfway(tmp_path)
    program = engines.wrapper(
        tmp_path / "python", python, QUIET, {"*run_areal.py*": f'{STANDINS / "areal_cpu.py"} "$@"'}
    )
    monkeypatch.setenv("MOXIN_AREAL_PYTHON", str(program))
    monkeypatch.setattr(model_loading, "prepare", lambda ctx: (model_loading.quiet(), torch.device("cpu"))[1])
    first = tuning.Stopping(tmp_path / "run", GrpoConfig(**RUN), inputs, nproc_per_node=2)
    first.after = 2
    with pytest.raises(Preempted):
        grpo_run.run(first)
    (tmp_path / "run" / "scratch" / "areal").rename(
        tmp_path / "old"
    )  # another attempt has its checkpoint, and nothing else
    ctx = LocalContext(tmp_path / "run", GrpoConfig(**RUN), inputs, nproc_per_node=2)
    grpo_run.run(ctx)
    metrics = [*first.metrics[:2], *ctx.metrics]
    rewards = [row["reward"] for row in metrics]
    print("rewards", rewards, "pass@1", ctx.stats["before_pass_at_1"], ctx.stats["after_pass_at_1"])
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5, 6]
    wanted = {*areal.METRICS.values(), "accuracy", "response_length", "kl"}
    assert all(wanted <= row.keys() for row in metrics)
    assert all(row["reward"] == pytest.approx(10 * row["accuracy"] - 5) for row in metrics)
    for step in (0, 3):  # the reference is the phase's start
        assert metrics[step]["kl"] == pytest.approx(0, abs=1e-4)
    assert -4 < rewards[0] < 4
    assert sum(rewards[-2:]) > sum(rewards[:2])
    found = ctx.checkpoints.latest()
    assert found is not None
    assert found[0] == 5
