"""Reinforcement learning: its loss and advantages, stretches, exact resume inside one and between two, a measured effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from stages.core.contracts import ConfigError, InputError, LocalArtifact, Preempted
from stages.core.testing import LocalContext
from stages.formats.effects import from_stats
from stages.grpo import rollout
from stages.grpo import run as grpo_run
from stages.grpo.evaluation import Measured
from stages.grpo.rollout import batch_advantages
from stages.grpo.run import run, schedule, warn_of_cuts
from stages.grpo.spec import Grpo, GrpoConfig
from stages.verifier import Verdict
from tests import tuning

Inputs = dict[str, list[LocalArtifact]]


class Letters:
    """In place of the verifier: right is what has a digit. A model with random weights learns that soon."""

    def __init__(self, **kwargs: Any) -> None:
        self.counts: dict[str, int] = {}

    def __enter__(self) -> Letters:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def verify_many(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        found = [Verdict(float(any(c in "0123456789" for c in text)), "correct") for text, _ in pairs]
        self.counts["correct"] = self.counts.get("correct", 0) + len(pairs)
        return found


def config(**changes: Any) -> GrpoConfig:
    values: dict[str, Any] = {
        "learning_rate": 1e-2,
        "stages": [{"steps": 2, "max_response": 4, "group": 4}, {"steps": 3, "max_response": 6, "group": 4}],
        "prompts": 4,
        "minibatches": 2,
        "micro_batch": 4,
        "max_prompt": 60,
        "instruction": "",
        "temperature": 1.0,
        "precision": "fp32",
        "eval_problems": 6,
        "eval_samples": 4,
        "samples": 2,
        "log_every": 1,
        "checkpoint_every": 100,
        "threads": 1,
        "device": "cpu",
    }
    return GrpoConfig(**(values | changes))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return tuning.sums(tmp_path_factory.mktemp("grpo"))


@pytest.fixture(autouse=True)
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpo_run, "Verifier", Letters)


def curve(ctx: LocalContext[GrpoConfig]) -> list[tuple[float, ...]]:
    return [tuple(row.get(name, -1.0) for name in ("step", "loss", "grad_norm", "reward", "kl", "response_length")) for row in ctx.metrics]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, artifacts: Inputs) -> LocalContext[GrpoConfig]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo_run, "Verifier", Letters)
        ctx = LocalContext(tmp_path_factory.mktemp("whole"), config(), artifacts)
        run(ctx)
    return ctx


# steps: two stretches of 4 and 6 optimizer steps; a batch of responses serves two of them
@pytest.mark.parametrize(("stop_after", "stopped_at"), [(1, 2), (3, 4), (5, 6), (6, 8)], ids=["first stretch", "between", "second stretch", "late"])
def test_a_stopped_run_resumes_to_the_same_curve_and_weights(
    tmp_path: Path, artifacts: Inputs, whole: LocalContext[GrpoConfig], stop_after: int, stopped_at: int
) -> None:
    broken = LocalContext(tmp_path, config(), artifacts, stop_after=stop_after)
    with pytest.raises(Preempted, match=f"stopped at step {stopped_at} of 10"):
        run(broken)
    resumed = LocalContext(tmp_path, config(), artifacts)
    run(resumed)
    assert [row["step"] for row in resumed.metrics] == list(range(stopped_at + 1, 11))
    assert curve(broken) + curve(resumed) == curve(whole)
    files = [(c.output("model") / "model.safetensors").read_bytes() for c in (whole, resumed)]
    assert files[0] == files[1]


def test_a_stretch_begins_from_the_one_before_and_its_own_reference(whole: LocalContext[GrpoConfig]) -> None:
    kl = {row["step"]: row["kl"] for row in whole.metrics}
    assert kl[1] == kl[5] == pytest.approx(0, abs=1e-6)  # the first step of each: policy and reference are one
    assert kl[4] > 1e-5
    lengths = [row["response_length"] for row in whole.metrics if "response_length" in row]
    assert max(lengths[:2]) <= 4 < max(lengths[2:]) <= 6
    assert {"reward", "truncated", "entropy", "clip_fraction", "accuracy", "format"} <= whole.metrics[0].keys()


@pytest.mark.parametrize(("advantage", "rewards"), [("group", (1.0, 0.0)), ("batch", (5.0, -5.0))])
def test_it_raises_the_reward_and_says_so(tmp_path: Path, artifacts: Inputs, advantage: str, rewards: tuple[float, float]) -> None:
    made = config(
        stages=[{"steps": 12, "max_response": 6, "group": 8}], minibatches=1, micro_batch=32, eval_problems=8, eval_samples=16,
        advantage=advantage, reward_right=rewards[0], reward_wrong=rewards[1],
    )  # fmt: skip
    ctx = LocalContext(tmp_path, made, artifacts)
    run(ctx)
    passed, shaped = from_stats(ctx.stats, "test")
    assert (passed.metric, passed.n, passed.trials, shaped.metric) == ("pass_at_1", 8, 16, "format")
    assert passed.shown
    assert passed.after > passed.before + 0.2
    first, last = ctx.metrics[0], ctx.metrics[-1]
    assert first["reward"] == pytest.approx(rewards[1] + (rewards[0] - rewards[1]) * first["accuracy"])
    assert last["reward"] > first["reward"]
    samples = [json.loads(line) for line in (ctx.output("model") / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 2
    assert samples[0]["before_outcome"] == "correct"
    planned = Grpo.facets(ctx.config, {port: [a.facets for a in many] for port, many in artifacts.items()})
    assert planned["model"] == ctx.facets["model"]


def test_a_stretch_that_cuts_what_the_parent_writes_is_told_of(tmp_path: Path, artifacts: Inputs) -> None:
    stages = [{"steps": 1, "max_response": n, "group": 4} for n in (8, 20)]
    ctx = LocalContext(tmp_path, config(stages=stages), artifacts)
    parent = Measured(right=[0.0], shaped=[0.0], length=12.0, truncated=0.0, lengths=[8, 12, 12, 16], first=[])
    warn_of_cuts(ctx, parent)
    assert ctx.logs == ["warning: stages.0.max_response = 8: 75% of the parent's answers are longer, are cut and earn nothing; raise it"]


def test_batch_advantages_weigh_a_response_by_its_tokens() -> None:
    rewards, lengths = torch.tensor([5.0, -5.0, -5.0]), torch.tensor([3, 1, 2])
    every_token = torch.tensor([5.0, 5.0, 5.0, -5.0, -5.0, -5.0])
    expected = (every_token - every_token.mean()) / (every_token.std(unbiased=False) + 1e-5)
    assert torch.allclose(batch_advantages(rewards, lengths), expected[[0, 3, 4]])
    assert batch_advantages(torch.full((4,), -5.0), torch.ones(4)).abs().max() == 0


def test_the_reward_is_the_verifiers(artifacts: Inputs) -> None:
    from stages.verifier import Verifier

    noted: dict[str, float] = {}
    texts = ["<think>1</think> \\boxed{4}", "<think>1</think> \\boxed{5}", "\\boxed{4}"]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    with Verifier() as verifier:
        reward = rollout.verified_reward(verifier, config(reward_right=5.0, reward_wrong=-5.0))
        assert reward(completions=completions, answer=["4"] * 3, log_metric=noted.__setitem__) == [5.0, -5.0, -5.0]
    assert noted == pytest.approx({"accuracy": 1 / 3, "format": 2 / 3})


def test_problems_come_in_seeded_permutations_that_run_on(artifacts: Inputs) -> None:
    from stages.grpo.evaluation import Questions

    questions = Questions(prompts=[[{"role": "user", "content": str(n)}] for n in range(9)], answers=[str(n) for n in range(9)])
    made = config(stages=[{"steps": 3, "max_response": 4, "group": 2}, {"steps": 6, "max_response": 4, "group": 2}])
    order = [row for number in (0, 1) for row in schedule(questions, made, number)["answer"]]
    assert len(order) == 36
    assert all(sorted(order[i : i + 9]) == sorted(questions.answers) for i in range(0, 36, 9))
    assert order[:9] == [str(n) for n in np.random.default_rng([made.seed, 0]).permutation(9)]


def test_problems_that_cannot_be_asked_are_counted_and_mistakes_are_refused(tmp_path: Path, artifacts: Inputs) -> None:
    bad = [("x" * 80, "1"), ("what </s>", "1")]
    with pytest.raises(InputError, match="test: no problem of its input problems can be asked: 1 longer than max_prompt, 1 spells a control token"):
        run(LocalContext(tmp_path / "1", config(), {**artifacts, "problems": [tuning.problems(tmp_path / "bad", bad)]}))
    with pytest.raises(ConfigError, match=r"grpo_x: stages is 127 tokens, but its parent p has context_length 126"):
        Grpo.check_facets("grpo_x", config(max_prompt=121), {"parent": [("p", {"context_length": 126, "chat_template_digest": "x"})]})
    with pytest.raises(ConfigError, match=r"at step \d+: training diverged; lower learning_rate"):
        run(LocalContext(tmp_path / "2", config(learning_rate=1e30), artifacts))
    for changes, message in (
        ({"prompts": 3}, "cannot be split into minibatches = 2"),
        ({"micro_batch": 5}, "no multiple of micro_batch = 5"),
        ({"stages": [{"steps": 1, "max_response": n, "group": 4} for n in (6, 4)]}, "max_response shrinks"),
        ({"reward_right": 0.0}, "is not above reward_wrong"),
    ):
        with pytest.raises(ValidationError, match=message):
            config(**changes)
