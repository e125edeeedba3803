"""Engine areal: its settings, reward, log, phases, resume, and what it refuses. The program is a stand-in;
test_areal_run.py has the real one.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from stages.core.context import LocalArtifact
from stages.core.errors import ConfigError, Preempted
from stages.core.resources import Resources
from stages.core.testing import LocalContext
from stages.grpo import run as grpo_run
from stages.grpo.spec import Grpo, GrpoConfig
from stages.lib.engines import areal, process
from stages.lib.engines.checkpoint_conversion import write_rows
from stages.lib.engines.programs import run_areal
from stages.lib.engines.programs.areal_worker import without_table
from stages.lib.engines.programs.reward import verified
from tests.support import engines, standins, tuning
from tests.support.areal_settings import RECIPE, SMALL
from tests.support.paths import DATA

STANDIN = Path(standins.__file__).parent / "areal_program.py"
Inputs = dict[str, list[LocalArtifact]]


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
    given = areal.settings(GrpoConfig(**RECIPE), 0, Path("FOLDER"), Path("MODEL"), 8)
    assert json.loads(json.dumps(given).replace(str(areal.PROGRAMS), "PROGRAMS")) == recorded
    actor = given["actor"]
    assert (given["rollout"]["backend"], actor["backend"]) == ("sglang:d4", "fsdp:d4")
    assert (actor["reward_norm"], actor["adv_norm"]["mean_level"], actor["adv_norm"]["std_level"]) == (
        None,
        "batch",
        "batch",
    )
    assert "critic" not in given


@pytest.mark.slow  # AReaL's wheel (1 MB) from the package index
def test_areals_own_manager_asks_for_no_more_than_its_servers_can_write_in_time(tmp_path: Path) -> None:
    """Its default is the whole batch at once: 16,384 responses on four GPUs, which wait longer than its time limit."""
    upstream = engines.wheel(tmp_path, f"areal=={areal.VERSION}") / "areal"
    stat = engines.definition(upstream / "api" / "io_struct.py", "RolloutStat", dataclass=dataclass)
    manager = engines.definition(
        upstream / "infra" / "staleness_manager.py",
        "StalenessManager",
        VersionProvider=object,
        Lock=Lock,
        RolloutStat=stat,
    )
    rollout = areal.settings(GrpoConfig(**RECIPE), 0, Path("FOLDER"), Path("MODEL"), 8)["rollout"]
    options = ast.parse((upstream / "api" / "cli_args.py").read_text(encoding="utf-8"))
    known = next(node for node in options.body if getattr(node, "name", "") == "InferenceEngineConfig")
    fields = {
        node.target.id: node
        for node in known.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }  # type: ignore[attr-defined]
    assert rollout.keys() <= fields.keys()
    asked = {}
    for name, limit in (
        ("ours", rollout["max_concurrent_rollouts"]),
        ("AReaL's default", rollout["consumer_batch_size"]),
    ):
        own = manager(
            type("Version", (), {"get_version": lambda self: 0})(),
            limit,
            rollout["consumer_batch_size"],
            rollout["max_head_offpolicyness"],
        )
        while own.get_capacity() > 0:
            own.on_rollout_enqueued()
            own.on_rollout_submitted()
        asked[name] = own.rollout_stat.running * 16 // 4  # a rollout is a group of 16; four GPUs write
    assert asked == {"ours": 64, "AReaL's default": 4096}
    speed = 2700 / 64  # infra/gpu_prices.toml: tokens a second of a full GPU, shared by the responses
    assert 5 * 16_384 / speed < rollout["request_timeout"]


def test_without_a_kl_term_there_is_no_reference() -> None:
    assert areal.settings(GrpoConfig(**{**RECIPE, "kl_coef": 0.0}), 0, Path("FOLDER"), Path("MODEL"), 8)["ref"] is None


def test_phases_become_a_model(tmp_path: Path, artifacts: Inputs, standin: Path) -> None:
    ctx = LocalContext(tmp_path / "run", GrpoConfig(**SMALL), artifacts, nproc_per_node=2)
    grpo_run.run(ctx)
    first, second = tuning.runs(standin)
    assert (len(first["rows"]), len(second["rows"])) == (8, 12)
    row = first["rows"][0]
    assert row["messages"][0]["role"] == "user"
    assert row["answer"] == str(int(row["messages"][0]["content"][0]) + 1)
    assert second["settings"]["actor"]["path"].endswith("phase-0/start")
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


@pytest.mark.parametrize(
    ("stop_after", "wait", "resumed", "steps"),
    [(1, "phase-0:1", [1, 0], [2, 3, 4, 5]), (2, "phase-0:2", [2, 0], [3, 4, 5])],
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
    """Inside a phase, and at its end, where the run that goes on has nothing to train and only writes."""
    monkeypatch.setenv("STANDIN", wait)
    broken = tuning.Stopping(tmp_path / "run", GrpoConfig(**SMALL), artifacts, nproc_per_node=2)
    broken.after = stop_after
    with pytest.raises(Preempted):
        grpo_run.run(broken)
    (tmp_path / "run" / "scratch" / "areal").rename(tmp_path / "old")
    standin.unlink()
    monkeypatch.setenv("STANDIN", "ok")
    again = LocalContext(tmp_path / "run", GrpoConfig(**SMALL), artifacts, nproc_per_node=2)
    grpo_run.run(again)
    assert [r["resumed"] for r in tuning.runs(standin)] == resumed
    assert [m["step"] for m in again.metrics] == steps


def test_a_crash_and_an_engine_that_is_not_there_say_so(
    tmp_path: Path, artifacts: Inputs, standin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", "crash")
    with pytest.raises(process.EngineError, match="areal ended with status 1: RuntimeError: CUDA is not there"):
        grpo_run.run(LocalContext(tmp_path / "run", GrpoConfig(**SMALL), artifacts, nproc_per_node=2))
    monkeypatch.delenv("MOXIN_AREAL_PYTHON")
    with pytest.raises(ConfigError, match="use the image of containers/areal"):
        grpo_run.run(LocalContext(tmp_path / "other", GrpoConfig(**SMALL), artifacts, nproc_per_node=2))


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


def test_problems_with_any_line_separator_of_unicode_come_through(tmp_path: Path) -> None:
    rows = [{"messages": f"one{mark}two"} for mark in ("\u2028", "\u0085", "\r", "\n", "\x1c")]
    assert write_rows(tmp_path / "train.jsonl", rows) == 5
    assert run_areal.read_rows(tmp_path / "train.jsonl") == rows


def test_the_program_and_the_stage_speak_of_the_same_line_and_file() -> None:
    from stages.lib.engines import context_phases

    assert (run_areal.MARK, run_areal.LATEST) == (areal.MARK, context_phases.LATEST)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"advantage": "group"}, "engine 'areal' is used here for PPO without a critic: set advantage = 'batch'"),
        ({"entropy_coef": 0.001}, "has no entropy bonus: set entropy_coef = 0.0"),
        ({"precision": "fp32"}, "samples with SGLang in bf16"),
        ({"device": "auto"}, "needs GPUs"),
        (
            {"max_tokens_per_gpu": 16_384},
            "max_tokens_per_gpu = 16384 is less than the longest prompt and response, 18432 tokens",
        ),
        ({"grad_clip": 0.0}, "always clips gradients"),
    ],
)
def test_what_areal_cannot_honour_is_refused_with_the_plan(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GrpoConfig(**{**RECIPE, **changes})


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        (1, r"^resources\.g\.gpus = 1: engine 'areal' writes on one half"),
        (24, r"^g\.context_phases\.0: 16384 responses are no multiple of resources\.g\.gpus = 24$"),
    ],
)
def test_gpus_that_cannot_share_the_work_are_refused_with_the_plan(gpus: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Grpo.check_resources("g", GrpoConfig(**RECIPE), Resources(gpus=gpus))
