"""Supervised fine-tuning: open-instruct's sum loss, exact resume, a measured effect, an ordinary folder, one line for a
mistake.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import AutoTokenizer, MistralForCausalLM
from trl.trainer.sft_config import SFTConfig as TrlConfig

from stages.core.context import LocalArtifact
from stages.core.errors import ConfigError, InputError, Preempted
from stages.core.testing import LocalContext
from stages.lib.finetuning import model_loading
from stages.lib.finetuning.encoding import encode_conversations
from stages.lib.finetuning.tuning_config import PAPER_PROMPTS
from stages.lib.formats import chat_template
from stages.lib.formats.examples import assistant, user
from stages.lib.formats.paired_eval import from_stats
from stages.sft.loss import SmoothedTrainer
from stages.sft.run import run
from stages.sft.spec import Sft, SftConfig
from tests.support import tuning
from tests.support.tuning import sft_config as config

Inputs = dict[str, list[LocalArtifact]]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    root = tmp_path_factory.mktemp("sft")
    return {
        "parent": [tuning.parent(root)],
        "conversations": [tuning.conversations(root / "train", tuning.echoes(0, 18))],
        "heldout": [tuning.conversations(root / "heldout", tuning.echoes(100, 16))],
    }


def curve(ctx: LocalContext[SftConfig]) -> list[tuple[float, ...]]:
    return [(r["step"], r["loss"], r["learning_rate"], r["grad_norm"], r["entropy"]) for r in ctx.metrics]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_step_is_that_of_the_sum_loss(artifacts: Inputs, tmp_path: Path, smoothing: float) -> None:
    """One SGD step over accumulated micro-batches moves the weights by the gradient of the *sum* over the whole batch,
    divided by its labels: open-instruct's `--reduce_loss sum` up to a factor to which AdamW is blind (paper 4)."""
    folder = artifacts["parent"][0].path
    tokenizer = model_loading.load_tokenizer(folder, chat_template.TULU)
    ragged = [[user("q" * n), assistant("ab " * (n + 1))] for n in range(1, 9)]
    rows = encode_conversations(tokenizer, ragged, 100).rows
    model = model_loading.load_model(folder, torch.device("cpu"))
    reference = copy.deepcopy(model)
    arguments = TrlConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=4,
        learning_rate=1.0, optim="sgd",
        lr_scheduler_type="constant", max_grad_norm=0.0, max_length=None, bf16=False, activation_checkpointing=False,
        use_cpu=True,
        report_to="none", disable_tqdm=True, save_strategy="no", dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    SmoothedTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        smoothing=smoothing,
    ).train()
    labels = 0
    for row in rows:  # one row at a time: no padding, no micro-batches, no TRL
        ids, wanted = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])[:, 1:]
        log_probs = F.log_softmax(reference(input_ids=ids).logits[:, :-1], -1)[wanted != -100]
        picked = log_probs.gather(-1, wanted[wanted != -100][:, None])[:, 0]
        (-(1 - smoothing) * picked.sum() - smoothing * log_probs.mean(-1).sum()).backward()
        labels += int((wanted != -100).sum())
    for mine, other in zip(model.parameters(), reference.parameters(), strict=True):
        assert other.grad is not None
        assert torch.allclose(mine, other - other.grad / labels, atol=2e-6)


@pytest.mark.parametrize(("smoothing", "stop_after"), [(0.0, 3), (0.1, 6)])
def test_a_stopped_run_resumes_to_the_same_curve_and_weights(
    tmp_path: Path, artifacts: Inputs, smoothing: float, stop_after: int
) -> None:
    made = config(label_smoothing=smoothing)
    whole = LocalContext(tmp_path / "whole", made, artifacts)
    run(whole)
    broken = LocalContext(
        tmp_path / "broken", made, artifacts, stop_after=stop_after
    )  # seen when its checkpoint is there
    with pytest.raises(Preempted, match=f"step {stop_after} of 10"):
        run(broken)
    resumed = LocalContext(tmp_path / "broken", made, artifacts)
    run(resumed)
    assert [row[0] for row in curve(resumed)] == list(range(stop_after + 1, 11))
    assert curve(broken) + curve(resumed) == curve(whole)
    files = [(c.output("model") / "model.safetensors").read_bytes() for c in (whole, resumed)]
    assert files[0] == files[1]
    most = broken.checkpoints.most
    assert 0 < most["disk_seconds"] < most["pause_seconds"], "it is stored after that, and no step is taken until then"
    assert resumed.checkpoints.most["load_seconds"] > 0
    assert all(row["step_processor_seconds"] > 0 for row in whole.metrics)
    assert all(row["step_seconds"] > 0 for row in whole.metrics)


def test_no_pickle_is_kept_in_a_checkpoint_but_tensors(tmp_path: Path, artifacts: Inputs) -> None:
    ctx = LocalContext(tmp_path, config(), artifacts, stop_after=1)
    with pytest.raises(Preempted):
        run(ctx)
    names = {p.name for p in (tmp_path / "checkpoints" / "00000002").iterdir()}
    assert "training_args.bin" not in names
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= names
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.load(tmp_path / "checkpoints" / "00000002" / name, weights_only=True)


def test_it_learns_and_says_so(tmp_path: Path, artifacts: Inputs) -> None:
    ctx = LocalContext(tmp_path, config(epochs=12, learning_rate=3e-3, label_smoothing=0.0), artifacts)
    run(ctx)
    (one,) = from_stats(ctx.stats, "test")
    assert one.metric == "answer_loss"
    assert one.n == 16
    assert one.shown
    assert ctx.stats["after_answer_loss"] < 0.7 * ctx.stats["before_answer_loss"]
    assert {"loss", "learning_rate", "grad_norm", "entropy", "token_accuracy"} <= ctx.metrics[0].keys()
    samples = [json.loads(line) for line in (ctx.output("model") / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 2 + len(PAPER_PROMPTS)
    assert [row["prompt"] for row in samples[2:]] == [[user(prompt)] for prompt in PAPER_PROMPTS]
    assert [row["prompt"] for row in ctx.stats["samples"][2:]] == [f"user: {prompt}" for prompt in PAPER_PROMPTS]
    assert samples[0]["reference"] == "eee"
    assert samples[0]["before"] != samples[0]["after"]


def test_format_and_accuracy_are_measured_on_held_out_problems(tmp_path: Path, artifacts: Inputs) -> None:
    letters = "abcdefghijklmnop"
    traces = [
        [user(f"what {letter}"), assistant(f"<think>{letter}</think>\\boxed{{{letter}}}")] for letter in letters
    ] * 3
    asked = [(f"what {letter}", letter if letter != "c" else "z") for letter in letters[:6]]
    inputs = {
        **artifacts,
        "conversations": [tuning.conversations(tmp_path / "traces", traces)],
        "problems": [tuning.problems(tmp_path / "asked", asked)],
    }
    made = config(epochs=20, learning_rate=1e-2, label_smoothing=0.0, max_new_tokens=32, instruction="")
    ctx = LocalContext(tmp_path / "run", made, inputs)
    run(ctx)
    found = {one.metric: one for one in from_stats(ctx.stats, "test")}
    assert (found["format"].before, found["accuracy"].before) == (0.0, 0.0)
    assert found["format"].after > 0.8
    assert found["accuracy"].after < found["format"].after  # the reference of 'c' is another letter
    assert found["format"].n == 6


def test_the_child_is_an_ordinary_folder_with_the_planned_facets(tmp_path: Path, artifacts: Inputs) -> None:
    ctx = LocalContext(tmp_path, config(epochs=1), artifacts)
    run(ctx)
    folder = ctx.output("model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = MistralForCausalLM.from_pretrained(folder)
    assert tokenizer.chat_template == chat_template.TULU
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    planned = Sft.facets(ctx.config, {port: [a.facets for a in many] for port, many in artifacts.items()})
    assert planned["model"] == ctx.facets["model"]
    assert ctx.facets["model"]["chat_template_digest"] == chat_template.digest(chat_template.TULU)
    assert ctx.meta["model"]["benchmarks"] == ["piqa"]
    card = (folder / "README.md").read_text()
    assert "| answer_loss" in card
    assert "in-domain" in card
    assert str(tmp_path) not in card


def test_what_cannot_be_learned_from_is_counted_and_nothing_left_is_an_error(tmp_path: Path, artifacts: Inputs) -> None:
    rows = [
        *tuning.echoes(0, 4),
        [user("a" * 120), assistant("b")],
        [user("</s>"), assistant("b")],
        [user("a"), assistant("b" * 120)],
    ]
    mixed = {**artifacts, "conversations": [tuning.conversations(tmp_path / "mixed", rows)]}
    ctx = LocalContext(tmp_path / "1", config(epochs=1), mixed)
    run(ctx)
    assert ctx.stats["removed"] == {"no answer within max_length": 1, "spells a control token": 1}
    assert (ctx.stats["rows"], ctx.stats["truncation_rate"]) == (5, 0.2)
    useless = {**artifacts, "conversations": [tuning.conversations(tmp_path / "useless", rows[4:6])]}
    with pytest.raises(
        InputError,
        match=(
            "test: no row of its conversations can be used: of 2, 1 spells a control token, 1 no answer within"
            " max_length"
        ),
    ):
        run(LocalContext(tmp_path / "2", config(), useless))


def test_divergence_names_the_step_and_the_setting(tmp_path: Path, artifacts: Inputs) -> None:
    with pytest.raises(
        ConfigError, match=r"test: the \w+( \w+)? is \w+ at step \d+: training diverged; lower learning_rate"
    ):
        run(LocalContext(tmp_path, config(learning_rate=1e30, warmup_ratio=0.0), artifacts))


def test_a_parent_that_does_not_fit_is_refused_at_plan_time(tmp_path: Path, artifacts: Inputs) -> None:
    def check(**facets: Any) -> None:
        Sft.check_facets("sft_x", config(max_length=100), {"parent": [("base", {**tuning.BASE_FACETS, **facets})]})

    check()
    check(chat_template_digest=chat_template.digest(chat_template.TULU))
    check(chat_template_digest=None, context_length=None)
    with pytest.raises(
        ConfigError, match=r"sft_x: chat_template = 'tulu' has digest \w{12}, but its parent base was tuned with other"
    ):
        check(chat_template_digest="other")
    with pytest.raises(
        ConfigError,
        match=r"max_length is 100 tokens, but its parent base has context_length 64: lower sft_x\.max_length",
    ):
        check(context_length=64)
    other = tuning.parent(tmp_path, template="{{ messages }}")
    with pytest.raises(ConfigError, match="was tuned with another one"):
        run(LocalContext(tmp_path / "run", config(), {**artifacts, "parent": [other]}))
    with pytest.raises(ConfigError, match=r"test\.precision = 'bf16' on a CPU"):
        run(LocalContext(tmp_path / "bf16", config(precision="bf16"), artifacts))
