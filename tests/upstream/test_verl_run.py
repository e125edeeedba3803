"""verl 0.9.1 itself, on the CPU, through the stage: Ray, FSDP2 on gloo, two phases, the verifier in its reward
workers, its merger.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch

from stages.core.errors import Preempted
from stages.core.testing import LocalContext
from stages.grpo import run as grpo_run
from stages.grpo.spec import GrpoConfig
from stages.lib.engines import verl
from stages.lib.finetuning import model_loading
from tests.support import engines, tuning

CONFIG = GrpoConfig(
    engine="verl",
    device="cuda",
    context_phases=(
        {"steps": 3, "max_response_length": 32, "num_generations": 8},
        {"steps": 3, "max_response_length": 40, "num_generations": 8},
    ),  # type: ignore[arg-type]
    prompts_per_step=8,
    num_mini_batches=1,
    learning_rate=1e-3,
    temperature=1.0,
    max_prompt_length=32,
    instruction="",
    eval_problems=8,
    eval_samples=8,
    samples=1,
    checkpoint_every=2,
    threads=1,
)


def cpu_settings(folder: Path) -> dict[str, object]:
    """What differs from the stage's settings on a machine without a GPU, where Ray is told of more cores than there
    are.
    """
    fsdp = "actor_rollout_ref.actor.fsdp_config"
    return {
        "trainer.device": "cpu",
        "+actor_rollout_ref.model.override_config.attn_implementation": "sdpa",
        f"{fsdp}.strategy": "fsdp2",
        f"{fsdp}.dtype": "float32",
        f"{fsdp}.model_dtype": "fp32",
        f"{fsdp}.use_torch_compile": False,
        f"+{fsdp}.mixed_precision.param_dtype": "fp32",
        f"+{fsdp}.mixed_precision.reduce_dtype": "fp32",
        "actor_rollout_ref.actor.use_torch_compile": False,
        "actor_rollout_ref.ref.fsdp_config.dtype": "float32",
        "actor_rollout_ref.rollout.name": "hf_cpu",
        "actor_rollout_ref.rollout.agent.num_workers": 1,
        "ray_kwargs.ray_init.num_cpus": 16,
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        "+ray_kwargs.ray_init.num_gpus": 1,
        "+ray_kwargs.ray_init.object_store_memory": 200_000_000,
        "+ray_kwargs.ray_init._temp_dir": str(folder),
    }


# installs verl's environment and starts Ray twice: minutes. The only proof that the settings train
@pytest.mark.upstream
def test_verl_trains_through_two_phases_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent answers right about half of the time, and says so in the right form: the reward has something to
    prefer.
    """
    inputs = tuning.halfway(tmp_path)
    with tempfile.TemporaryDirectory(prefix="ray") as ray:  # short: a socket's path has at most 107 characters
        variables = {
            "VERL_USE_EXTERNAL_MODULES": "tests.support.standins.verl_cpu",
            "VERL_PLATFORM": "cpu",
            "VERL_ENGINE_DEVICE": "cuda",
            "HOME": ray,
        }
        variables |= {"OMP_NUM_THREADS": "1", "RAY_memory_monitor_refresh_ms": "0"}
        words = [f"'{name}={json.dumps(value)}'" for name, value in cpu_settings(Path(ray)).items()]
        python = engines.interpreter(tmp_path / "venv", "verl_cpu")
        program = engines.wrapper(
            tmp_path / "python", python, variables, {"*verl.trainer.main_ppo*": f'"$@" {" ".join(words)}'}
        )
        monkeypatch.setenv("MOXIN_VERL_PYTHON", str(program))
        monkeypatch.setattr(model_loading, "prepare", lambda ctx: (model_loading.quiet(), torch.device("cpu"))[1])
        first = tuning.Stopping(tmp_path / "run", CONFIG, inputs)
        first.after = 2
        with pytest.raises(Preempted):
            grpo_run.run(first)
        (tmp_path / "run" / "scratch" / "verl").rename(
            tmp_path / "old"
        )  # another attempt has its checkpoint, and nothing else
        ctx = LocalContext(tmp_path / "run", CONFIG, inputs)
        grpo_run.run(ctx)
        metrics = [*first.metrics[:2], *ctx.metrics]
    rewards = [row["reward"] for row in metrics]
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5, 6]
    assert all(set(verl.METRICS.values()) <= row.keys() for row in metrics)
    print("rewards", rewards, "pass@1", ctx.stats["before_pass_at_1"], ctx.stats["after_pass_at_1"])
    assert 0.2 < rewards[0] < 0.8
    assert all(row["grad_norm"] > 0 for row in metrics)
    for step in (0, 3):  # the reference is the phase's start
        assert metrics[step]["kl"] == pytest.approx(0, abs=1e-4)
    found = ctx.checkpoints.latest()
    assert found is not None
    assert found[0] == 5
    assert sum(rewards[-2:]) > sum(rewards[:2])
