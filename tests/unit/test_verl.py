"""Engine verl: its settings, data, reward, log, stretches, merge, resume. The program is a stand-in; the settings are composed for real."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from stages.core.contracts import LocalArtifact, Preempted
from stages.core.testing import LocalContext
from stages.engines import process, stretches, verl
from stages.engines.programs.reward import compute_score
from stages.grpo import run as grpo_run
from stages.grpo.spec import GrpoConfig
from tests import standins, tuning

DATA = Path(__file__).parents[1] / "data"
STANDINS = Path(standins.__file__).parent
Inputs = dict[str, list[LocalArtifact]]
RECIPE = {"engine": "verl", "device": "cuda", "devices": 8, "recompute": "full", "checkpoint_every": 20}
SMALL: dict[str, Any] = {"engine": "verl", "device": "cuda", **tuning.TWO_STRETCHES}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return tuning.sums(tmp_path_factory.mktemp("verl"))


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return tuning.stand_in(tmp_path, monkeypatch, "verl", STANDINS / "verl.py")


def recipe(number: int) -> dict[str, Any]:
    return verl.overrides(GrpoConfig(**RECIPE), number, Path("FOLDER"), Path("MODEL"))


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
    assert (lengths, groups) == ([8192, 16384, 24576], [8, 16, 16])  # RECIPE 5


@pytest.mark.slow  # makes an environment with hydra-core and takes verl's wheel (1.7 MB) from the package index: some 20 seconds
def test_the_settings_compose_with_the_configuration_that_verl_ships(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    venv.create(tmp_path / "venv")
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([*pip, "--python", python, "install", "hydra-core==1.3.8"], check=True)
    subprocess.run([*pip, "download", "--no-deps", f"verl=={verl.VERSION}", "-d", str(tmp_path)], check=True)
    with zipfile.ZipFile(next(tmp_path.glob("verl-*.whl"))) as wheel:
        wheel.extractall(tmp_path / "wheel")
    shipped = tmp_path / "wheel" / "verl" / "trainer" / "config"
    for number in range(3):
        given = {**recipe(number), "data.train_files": "/a folder/(x)=[1],{2}/train.parquet"}  # what Hydra's grammar gives a meaning
        (tmp_path / "overrides.json").write_text(json.dumps(verl.words(given)))
        command = [python, str(STANDINS / "compose.py"), str(shipped), str(tmp_path / "overrides.json")]
        composed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for name, value in given.items():
            found: Any = composed
            for part in name.removeprefix("+").split("."):
                found = found[part]
            assert found == value, name


def test_stretches_become_a_model(tmp_path: Path, artifacts: Inputs, standin: Path) -> None:
    ctx = LocalContext(tmp_path / "run", GrpoConfig(**SMALL), artifacts)
    grpo_run.run(ctx)
    first, second = tuning.runs(standin)
    assert (len(first["rows"]), len(second["rows"])) == (8, 12)
    row = first["rows"][0]
    assert row["prompt"][0]["role"] == "user"
    assert row["reward_model"] == {"style": "rule", "ground_truth": str(int(row["prompt"][0]["content"][0]) + 1)}
    asked = [r["prompt"][0]["content"] for r in first["rows"] + second["rows"]]
    assert len(set(asked[:9])) == 9  # a permutation that runs on through the stretches
    assert second["settings"]["actor_rollout_ref.model.path"].endswith("stretch-0/start")
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
    [(1, "stretch-0:1", [1, 0], [2, 3, 4, 5]), (2, "stretch-0:2", [0], [3, 4, 5]), (4, "stretch-1:2", [2], [5])],
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
    """Inside the first stretch, at its end, and inside the second, whose start travels with the checkpoint."""
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
    stretch = stretches.Stretch(ctx, 0, tmp_path / "stretch", tmp_path / "start", sys.executable, {})
    follower = stretches.Follower(stretch, lambda line: (int(line), {"loss": 1.0}))
    keeper = stretches.Checkpoints(stretch, follower)
    (stretch.checkpoints / "global_step_1").mkdir(parents=True)
    (stretch.checkpoints / "global_step_1" / "weights").touch()
    (stretch.checkpoints / stretches.LATEST).write_text("1")
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


def test_a_crash_says_what_the_engine_said(tmp_path: Path, artifacts: Inputs, standin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN", "crash")
    with pytest.raises(process.EngineError, match=r"verl ended with status 1: ray.exceptions.RayTaskError\(ValueError\)"):
        grpo_run.run(LocalContext(tmp_path / "run", GrpoConfig(**SMALL), artifacts))


def test_the_reward_is_the_verifiers_on_the_recipes_scale() -> None:
    keywords: dict[str, Any] = {"rule": "deepscaler", "right": 5.0, "wrong": -5.0}
    right, wrong = "<think>\n1+1=2.\n</think>\n\\boxed{2}", "\\boxed{2}"
    assert compute_score("moxin", right, "2", None, **keywords) == {"score": 5.0, "acc": 1.0, "format": 1.0}
    assert compute_score("moxin", wrong, "2", {}, **keywords, reward_router_address=None) == {"score": -5.0, "acc": 0.0, "format": 0.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"advantage": "batch"}, "engine 'verl' is used here for GRPO: set advantage = 'group'"),
        ({"precision": "fp32"}, "samples with vLLM in bf16"),
        ({"device": "auto"}, "needs GPUs"),
        ({"tokens_per_device": 16_384}, "tokens_per_device = 16384 is less than the longest prompt and response, 25600 tokens"),
        ({"devices": 3}, "stages.0: 1024 responses are no multiple of devices = 3"),
        ({"grad_clip": 0.0}, "always clips gradients"),
        ({"eps": 1e-5}, "set eps = 1e-08"),
    ],
)
def test_what_verl_cannot_honour_is_refused_with_the_plan(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GrpoConfig(**{**RECIPE, **changes})
