"""Engine areal: its settings, reward, log, stretches, resume, and what it refuses. The program is a stand-in; test_areal_run.py has the real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from stages.core.contracts import ConfigError, LocalArtifact, Preempted
from stages.core.testing import LocalContext
from stages.engines import areal, process
from stages.engines.programs import run_areal
from stages.engines.programs.areal_worker import without_table
from stages.engines.programs.reward import verified
from stages.grpo import run as grpo_run
from stages.grpo.spec import GrpoConfig
from tests import standins, tuning

DATA = Path(__file__).parents[1] / "data"
STANDIN = Path(standins.__file__).parent / "areal_program.py"
Inputs = dict[str, list[LocalArtifact]]
AREAL: dict[str, Any] = {"engine": "areal", "device": "cuda", "advantage": "batch", "entropy": 0.0, "kl": 0.01, "reward_right": 5.0, "reward_wrong": -5.0}
RECIPE: dict[str, Any] = {  # profile 7b's
    **AREAL,
    "devices": 8,
    "prompts": 1024,
    "minibatches": 4,
    "max_prompt": 2048,
    "recompute": "full",
    "checkpoint_every": 20,
    "stages": [{"steps": 400, "max_response": 16384, "group": 16}],
}
SMALL: dict[str, Any] = {**AREAL, **tuning.TWO_STRETCHES}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return tuning.sums(tmp_path_factory.mktemp("areal"))


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return tuning.stand_in(tmp_path, monkeypatch, "areal", STANDIN)


def test_the_recipes_settings_are_the_recorded_ones() -> None:
    """test_areal_run.py gives them to AReaL's own classes."""
    recorded = json.loads((DATA / "areal_settings.json").read_text())
    assert recorded.pop("version") == areal.VERSION
    given = areal.settings(GrpoConfig(**RECIPE), 0, Path("FOLDER"), Path("MODEL"))
    assert json.loads(json.dumps(given).replace(str(areal.PROGRAMS), "PROGRAMS")) == recorded
    actor = given["actor"]
    assert (given["rollout"]["backend"], actor["backend"]) == ("sglang:d4", "fsdp:d4")
    assert (actor["reward_norm"], actor["adv_norm"]["mean_level"], actor["adv_norm"]["std_level"]) == (None, "batch", "batch")
    assert "critic" not in given


def test_without_a_kl_term_there_is_no_reference() -> None:
    assert areal.settings(GrpoConfig(**{**RECIPE, "kl": 0.0}), 0, Path("FOLDER"), Path("MODEL"))["ref"] is None


def test_stretches_become_a_model(tmp_path: Path, artifacts: Inputs, standin: Path) -> None:
    ctx = LocalContext(tmp_path / "run", GrpoConfig(**SMALL), artifacts)
    grpo_run.run(ctx)
    first, second = tuning.runs(standin)
    assert (len(first["rows"]), len(second["rows"])) == (8, 12)
    row = first["rows"][0]
    assert row["messages"][0]["role"] == "user"
    assert row["answer"] == str(int(row["messages"][0]["content"][0]) + 1)
    assert second["settings"]["actor"]["path"].endswith("stretch-0/start")
    assert [m["step"] for m in ctx.metrics] == [1, 2, 3, 4, 5]
    assert ctx.metrics[0] == {
        "step": 1,
        "loss": 0.5,
        "learning_rate": 1e-6,
        "grad_norm": 0.15,
        "reward": 0.0,  # half of the stand-in's responses are right: 5, and -5
        "accuracy": 0.5,
        "response_length": 12.0,
        "kl": pytest.approx(1e-3),
    }
    parent = load_file(artifacts["parent"][0].path / "model.safetensors")
    child = load_file(ctx.output("model") / "model.safetensors")
    for name, tensor in parent.items():
        assert torch.equal(child[name], tensor + 0.5 + 0.5)


@pytest.mark.parametrize(("stop_after", "wait", "resumed", "steps"), [(1, "stretch-0:1", [1, 0], [2, 3, 4, 5]), (2, "stretch-0:2", [2, 0], [3, 4, 5])])
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
    """Inside a stretch, and at its end, where the run that goes on has nothing to train and only writes."""
    monkeypatch.setenv("STANDIN", wait)
    broken = tuning.Stopping(tmp_path / "run", GrpoConfig(**SMALL), artifacts)
    broken.after = stop_after
    with pytest.raises(Preempted):
        grpo_run.run(broken)
    (tmp_path / "run" / "scratch" / "areal").rename(tmp_path / "old")
    standin.unlink()
    monkeypatch.setenv("STANDIN", "ok")
    again = LocalContext(tmp_path / "run", GrpoConfig(**SMALL), artifacts)
    grpo_run.run(again)
    assert [r["resumed"] for r in tuning.runs(standin)] == resumed
    assert [m["step"] for m in again.metrics] == steps


def test_a_crash_and_an_engine_that_is_not_there_say_so(
    tmp_path: Path, artifacts: Inputs, standin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", "crash")
    with pytest.raises(process.EngineError, match="areal ended with status 1: RuntimeError: CUDA is not there"):
        grpo_run.run(LocalContext(tmp_path / "run", GrpoConfig(**SMALL), artifacts))
    monkeypatch.delenv("MOXIN_AREAL_PYTHON")
    with pytest.raises(ConfigError, match="use the image of containers/areal"):
        grpo_run.run(LocalContext(tmp_path / "other", GrpoConfig(**SMALL), artifacts))


def test_the_reward_is_the_verifiers_on_the_recipes_scale() -> None:
    row = {"messages": [], "answer": "2", "rule": "deepscaler", "right": 5.0, "wrong": -5.0}
    assert verified("p", "<think>\n1+1=2.\n</think>\n\\boxed{2}</s>", [], [], **row) == 5.0
    assert verified("p", "<think>\n1+1=2.\n</think>\n\\boxed{3}</s>", [], [], **row) == -5.0
    assert verified("p", "\\boxed{2}", [], [], **row) == -5.0


def test_a_table_of_masks_becomes_no_mask_and_a_mask_stays() -> None:
    table = {"attention_mask": {"full_attention": None, "sliding_attention": None}, "use_cache": False}
    assert without_table(None, (), table) == ((), {"attention_mask": None, "use_cache": False})
    mask = torch.ones(1, 2)
    assert without_table(None, (1,), {"attention_mask": mask})[1]["attention_mask"] is mask


def test_the_program_and_the_stage_speak_of_the_same_line_and_file() -> None:
    from stages.engines import stretches

    assert (run_areal.MARK, run_areal.LATEST) == (areal.MARK, stretches.LATEST)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"advantage": "group"}, "engine 'areal' is used here for PPO without a critic: set advantage = 'batch'"),
        ({"entropy": 0.001}, "has no entropy bonus: set entropy = 0.0"),
        ({"precision": "fp32"}, "samples with SGLang in bf16"),
        ({"device": "auto"}, "needs GPUs"),
        ({"devices": 1}, "trains on the other: give it an even number"),
        ({"tokens_per_device": 16_384}, "tokens_per_device = 16384 is less than the longest prompt and response, 18432 tokens"),
        ({"devices": 24}, "16384 responses are no multiple of devices = 24"),
        ({"grad_clip": 0.0}, "always clips gradients"),
    ],
)
def test_what_areal_cannot_honour_is_refused_with_the_plan(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GrpoConfig(**{**RECIPE, **changes})
