"""Reinforcement learning: its loss and advantages, phases, exact resume inside one and between two, a measured
effect.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import MistralConfig, MistralForCausalLM

from stages.core.context import LocalArtifact
from stages.core.errors import ConfigError, InputError, Preempted
from stages.core.testing import LocalContext
from stages.grpo import evaluation, rollout
from stages.grpo import run as grpo_run
from stages.grpo.evaluation import Answered
from stages.grpo.rollout import batch_advantages
from stages.grpo.run import run, schedule, warn_of_cuts
from stages.grpo.spec import Grpo, GrpoConfig
from stages.lib.finetuning import heldout_evaluation, inference_memory
from stages.lib.formats.paired_eval import from_stats
from stages.lib.modeling.config_file import read_shape
from stages.lib.modeling.shape import ModelShape
from stages.lib.verifier import Verdict
from tests.support import tuning
from tests.support.tuning import grpo_config as config

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


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return tuning.sums(tmp_path_factory.mktemp("grpo"))


@pytest.fixture(autouse=True)
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (grpo_run, evaluation):
        monkeypatch.setattr(module, "Verifier", Letters)


def curve(ctx: LocalContext[GrpoConfig]) -> list[tuple[float, ...]]:
    return [
        tuple(row.get(name, -1.0) for name in ("step", "loss", "grad_norm", "reward", "kl", "response_length"))
        for row in ctx.metrics
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, artifacts: Inputs) -> LocalContext[GrpoConfig]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (grpo_run, evaluation):
            patch.setattr(module, "Verifier", Letters)
        ctx = LocalContext(tmp_path_factory.mktemp("whole"), config(), artifacts)
        run(ctx)
    return ctx


# steps: two phases of 4 and 6 optimizer steps; a batch of responses serves two of them
@pytest.mark.parametrize(
    ("stop_after", "stopped_at"),
    [(1, 2), (3, 4), (5, 6), (6, 8)],
    ids=["first phase", "between", "second phase", "late"],
)
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


def test_a_phase_begins_from_the_one_before_and_its_own_reference(whole: LocalContext[GrpoConfig]) -> None:
    kl = {row["step"]: row["kl"] for row in whole.metrics}
    assert kl[1] == kl[5] == pytest.approx(0, abs=1e-6)  # the first step of each: policy and reference are one
    assert kl[4] > 1e-5
    lengths = [row["response_length"] for row in whole.metrics if "response_length" in row]
    assert max(lengths[:2]) <= 4 < max(lengths[2:]) <= 6
    assert {"reward", "truncated", "entropy", "clip_fraction", "accuracy", "format"} <= whole.metrics[0].keys()


@pytest.mark.parametrize(("advantage", "rewards"), [("group", (1.0, 0.0)), ("batch", (5.0, -5.0))])
def test_it_raises_the_reward_and_says_so(
    tmp_path: Path, artifacts: Inputs, advantage: str, rewards: tuple[float, float]
) -> None:
    made = config(
        context_phases=[{"steps": 12, "max_response_length": 6, "num_generations": 8}], num_mini_batches=1,
        micro_batch_size=32, eval_problems=8, eval_samples=16,
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


def test_a_phase_that_cuts_what_the_parent_writes_is_told_of(tmp_path: Path, artifacts: Inputs) -> None:
    stages = [{"steps": 1, "max_response_length": n, "num_generations": 4} for n in (8, 20)]
    ctx = LocalContext(tmp_path, config(context_phases=stages), artifacts)
    parent = Answered(right=[0.0], shaped=[0.0], length=12.0, truncated=0.0, lengths=[8, 12, 12, 16], first=[])
    warn_of_cuts(ctx, parent)
    assert ctx.logs == [
        "warning: context_phases.0.max_response_length = 8: 75% of the parent's answers are longer, are cut and earn "
        "nothing; raise it"
    ]


def test_batch_advantages_weigh_a_response_by_its_tokens() -> None:
    rewards, lengths = torch.tensor([5.0, -5.0, -5.0]), torch.tensor([3, 1, 2])
    every_token = torch.tensor([5.0, 5.0, 5.0, -5.0, -5.0, -5.0])
    expected = (every_token - every_token.mean()) / (every_token.std(unbiased=False) + 1e-5)
    assert torch.allclose(batch_advantages(rewards, lengths), expected[[0, 3, 4]])
    assert batch_advantages(torch.full((4,), -5.0), torch.ones(4)).abs().max() == 0


def test_the_reward_is_the_verifiers(artifacts: Inputs) -> None:
    from stages.lib.verifier import Verifier

    noted: dict[str, float] = {}
    texts = ["<think>1</think> \\boxed{4}", "<think>1</think> \\boxed{5}", "\\boxed{4}"]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    with Verifier() as verifier:
        reward = rollout.verified_reward(verifier, config(reward_right=5.0, reward_wrong=-5.0))
        assert reward(completions=completions, answer=["4"] * 3, log_metric=noted.__setitem__) == [5.0, -5.0, -5.0]
    assert noted == pytest.approx({"accuracy": 1 / 3, "format": 2 / 3})


def test_problems_come_in_seeded_permutations_that_run_on(artifacts: Inputs) -> None:
    from stages.grpo.evaluation import Questions

    questions = Questions(
        prompts=[[{"role": "user", "content": str(n)}] for n in range(9)], answers=[str(n) for n in range(9)]
    )
    made = config(
        context_phases=[
            {"steps": 3, "max_response_length": 4, "num_generations": 2},
            {"steps": 6, "max_response_length": 4, "num_generations": 2},
        ]
    )
    order = [row for number in (0, 1) for row in schedule(questions, made, number)["answer"]]
    assert len(order) == 36
    assert all(sorted(order[i : i + 9]) == sorted(questions.answers) for i in range(0, 36, 9))
    assert order[:9] == [str(n) for n in np.random.default_rng([made.seed, 0]).permutation(9)]


def test_responses_are_written_within_the_budget_of_memory(
    tmp_path: Path, artifacts: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen responses at one time without a budget; with one for five of them, at most five."""
    row = inference_memory.cache_bytes(
        read_shape(artifacts["parent"][0].path)[0], config().max_prompt_length + 4, "fp32"
    )
    sizes: dict[float, list[int]] = {}
    for gib in (4.0, 5.5 * row / 2**30):
        seen = sizes.setdefault(gib, [])
        with monkeypatch.context() as patch:
            generate = MistralForCausalLM.generate

            def counting(model: Any, *args: Any, seen: list[int] = seen, generate: Any = generate, **kw: Any) -> Any:
                seen.append(len(kw["input_ids"]))
                return generate(model, *args, **kw)

            patch.setattr(MistralForCausalLM, "generate", counting)
            patch.setattr(grpo_run, "measure", lambda *args: heldout_evaluation.Measurements())
            phases = [{"steps": 1, "max_response_length": 4, "num_generations": 4}]
            made = config(context_phases=phases, rollout_cache_gib=gib)
            run(LocalContext(tmp_path / str(gib), made, artifacts))
    assert list(sizes.values()) == [[16], [5, 5, 5, 1]]


def test_a_rollouts_keys_and_values_are_float32_under_autocast_and_counted_so() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = MistralForCausalLM(MistralConfig(vocab_size=50, num_key_value_heads=1, head_dim=8, **sizes))
    with torch.autocast("cpu", torch.bfloat16):
        written: Any = model.generate(
            torch.arange(3, 8)[None], max_new_tokens=4, return_dict_in_generate=True, pad_token_id=0
        )
    layers = written.past_key_values.layers
    assert {(layer.keys.dtype, layer.values.dtype) for layer in layers} == {(torch.float32, torch.float32)}
    phases = [{"steps": 1, "max_response_length": 2000, "num_generations": 8}]
    rows = {
        precision: config(precision=precision, context_phases=phases, rollout_cache_gib=4.0).rollout_rows(
            ModelShape(), 0
        )
        for precision in ("fp32", "bf16")
    }
    assert rows["bf16"] == rows["fp32"]
    assert rows["fp32"] < 32  # the budget decides, not the number of responses


def test_problems_that_cannot_be_asked_are_counted_and_mistakes_are_refused(tmp_path: Path, artifacts: Inputs) -> None:
    bad = [("x" * 80, "1"), ("what </s>", "1")]
    with pytest.raises(
        InputError,
        match="test: no problem of its input problems can be asked: 1 longer than max_prompt_length,"
        " 1 spells a control token",
    ):
        run(LocalContext(tmp_path / "1", config(), {**artifacts, "problems": [tuning.problems(tmp_path / "bad", bad)]}))
    with pytest.raises(
        ConfigError, match=r"grpo_x: context_phases is 127 tokens, but its parent p has context_length 126"
    ):
        Grpo.check_facets(
            "grpo_x",
            config(max_prompt_length=121),
            {"parent": [("p", {"context_length": 126, "chat_template_digest": "x"})]},
        )
    with pytest.raises(ConfigError, match=r"at step \d+: training diverged; lower learning_rate"):
        run(LocalContext(tmp_path / "2", config(learning_rate=1e30), artifacts))
    for changes, message in (
        ({"prompts_per_step": 3}, r"error, prompts_per_step = 3 cannot be split into num_mini_batches = 2 \["),
        ({"micro_batch_size": 5}, "no multiple of micro_batch_size = 5"),
        (
            {"context_phases": [{"steps": 1, "max_response_length": n, "num_generations": 4} for n in (6, 4)]},
            "max_response_length shrinks",
        ),
        ({"reward_right": 0.0}, "is not above reward_wrong"),
    ):
        with pytest.raises(ValidationError, match=message):
            config(**changes)
