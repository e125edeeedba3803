"""DPO: open-instruct's dpo_norm on one and several turns, cached reference, exact resume, a measured effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from stages.core.artifacts import Preferences
from stages.core.context import LocalArtifact
from stages.core.errors import ConfigError, InputError, Preempted
from stages.core.testing import LocalContext, local_artifact
from stages.dpo import run as dpo_run
from stages.dpo.pairs import SIDES, encode_pairs
from stages.dpo.run import preferred, run
from stages.dpo.spec import Dpo, DpoConfig
from stages.lib.finetuning import model_loading
from stages.lib.finetuning.log_probs import label_log_probs
from stages.lib.finetuning.tuning_config import PAPER_PROMPTS
from stages.lib.formats import chat_template
from stages.lib.formats.examples import Message, PreferenceWriter, assistant, read_preferences, user
from stages.lib.formats.paired_eval import from_stats
from tests.support import tuning
from tests.support.tuning import dpo_config as config
from tests.support.tuning import pairs

Inputs = dict[str, list[LocalArtifact]]
FIRST: list[Message] = [user("what is 1+2?")]
SECOND: list[Message] = [*FIRST, assistant("it is 3, of course"), user("and 4+5?")]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    root = tmp_path_factory.mktemp("dpo")
    return {
        "parent": [tuning.parent(root, chat_template.TULU)],
        "preferences": [tuning.preferences(root / "train", pairs(0, 32))],
        "heldout": [tuning.preferences(root / "heldout", pairs(100, 20))],
    }


def mean_log_prob(model: Any, tokenizer: Any, messages: list[Message], last_only: bool) -> torch.Tensor:
    """open-instruct's labels, cut out turn by turn from the lengths of rendered prefixes, and their mean
    log-probability.
    """
    ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False))["input_ids"]
    labels = [-100] * len(ids)
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or (last_only and i < len(messages) - 1):
            continue
        start = len(
            tokenizer(tokenizer.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True))[
                "input_ids"
            ]
        )
        end = len(tokenizer(tokenizer.apply_chat_template(messages[: i + 1], tokenize=False))["input_ids"])
        labels[start:end] = ids[start:end]
    log_probs = F.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, :-1], -1)
    targets = torch.tensor(labels[1:])
    return log_probs[targets != -100].gather(-1, targets[targets != -100][:, None]).mean()


@pytest.mark.parametrize("turns", ["all", "last"])
@pytest.mark.parametrize("prompt", [FIRST, SECOND], ids=["one turn", "two turns"])
@torch.no_grad()
def test_the_loss_is_open_instructs_dpo_norm(
    tmp_path: Path, artifacts: Inputs, monkeypatch: pytest.MonkeyPatch, prompt: list[Message], turns: str
) -> None:
    answers = {"chosen": "it is 9", "rejected": "not sure, maybe 10, i think"}
    data = tuning.preferences(tmp_path / "one", [(prompt, answers["chosen"], answers["rejected"])])
    ctx = LocalContext(
        tmp_path,
        config(turns=turns, global_batch_size=1, micro_batch_size=1, learning_rate=1e-12),
        {**artifacts, "preferences": [data]},
    )
    folder = artifacts["parent"][0].path
    tokenizer = model_loading.load_tokenizer(folder, chat_template.TULU)
    reference, model = (model_loading.load_model(folder, torch.device("cpu")) for _ in range(2))
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    shift = {
        side: mean_log_prob(model, tokenizer, [*prompt, assistant(a)], turns == "last") for side, a in answers.items()
    }
    for side, answer in answers.items():
        shift[side] -= mean_log_prob(reference, tokenizer, [*prompt, assistant(answer)], turns == "last")
    expected = float(-F.logsigmoid(5.0 * (shift["chosen"] - shift["rejected"])))
    encoded = encode_pairs(tokenizer, read_preferences(data.path), ctx.config, None)
    cached = [label_log_probs(reference, encoded.labelled(side), 400)[0] for side in SIDES]
    monkeypatch.setattr(dpo_run, "reference", lambda *args: cached)  # of another model than the one that is tuned
    with torch.enable_grad():
        dpo_run.tune(ctx, model, tokenizer, encoded, torch.device("cpu"))
    assert ctx.metrics[0]["loss"] == pytest.approx(expected, abs=2e-5)
    assert abs(expected - 0.6931) > 0.01  # the models differ


def test_one_turn_has_one_meaning_and_two_have_two(artifacts: Inputs, tmp_path: Path) -> None:
    tokenizer = model_loading.load_tokenizer(artifacts["parent"][0].path, chat_template.TULU)
    rows: list[Any] = [{"prompt": p, "chosen": [assistant("a")], "rejected": [assistant("b")]} for p in (FIRST, SECOND)]
    every, last = (encode_pairs(tokenizer, rows, config(turns=turns), None).rows for turns in ("all", "last"))
    assert every[0] == last[0]
    assert sum(every[1]["chosen_mask"]) > sum(last[1]["chosen_mask"]) == 2  # 'a' and the end


def curve(ctx: LocalContext[DpoConfig]) -> list[tuple[float, ...]]:
    return [(r["step"], r["loss"], r["learning_rate"], r["grad_norm"], r["reward_margin"]) for r in ctx.metrics]


def test_a_stopped_run_resumes_to_the_same_curve_and_weights(tmp_path: Path, artifacts: Inputs) -> None:
    whole = LocalContext(tmp_path / "whole", config(), artifacts)
    run(whole)
    broken = LocalContext(tmp_path / "broken", config(), artifacts, stop_after=4)
    with pytest.raises(Preempted, match="step 5 of 8"):
        run(broken)
    resumed = LocalContext(tmp_path / "broken", config(), artifacts)
    run(resumed)
    assert curve(broken) + curve(resumed) == curve(whole)
    files = [(c.output("model") / "model.safetensors").read_bytes() for c in (whole, resumed)]
    assert files[0] == files[1]


def agreement(model_folder: Path, heldout: Path) -> float:
    """The share of held-out pairs whose better answer a model finds more likely."""
    model = model_loading.load_model(model_folder, torch.device("cpu"))
    tokenizer = model_loading.load_tokenizer(model_folder, chat_template.TULU)
    encoded = encode_pairs(tokenizer, read_preferences(heldout), config(), None)
    right = preferred(lambda rows: label_log_probs(model, rows, 800), encoded)["right"]
    return sum(right) / len(right)


def test_it_comes_to_prefer_the_better_answer_and_says_so(tmp_path: Path, artifacts: Inputs) -> None:
    """Better is what the parent, whose weights are random, finds less likely."""
    (parent,), letters = artifacts["parent"], ["n", "y"]
    if agreement(parent.path, tuning.preferences(tmp_path / "asked", pairs(100, 20, *letters)).path) > 0.5:
        letters.reverse()
    heldout = tuning.preferences(tmp_path / "heldout", pairs(100, 20, *letters))
    train = tuning.preferences(tmp_path / "train", pairs(0, 32, *letters))
    ctx = LocalContext(
        tmp_path / "stage", config(epochs=4), {"parent": [parent], "preferences": [train], "heldout": [heldout]}
    )
    run(ctx)
    assert ctx.metrics[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # the model is its own reference
    accuracy, margin = from_stats(ctx.stats, "test")
    assert (accuracy.metric, accuracy.n, margin.metric) == ("preference_accuracy", 20, "preference_margin")
    assert accuracy.after > 0.95 > accuracy.before
    assert margin.shown
    assert ctx.metrics[-1]["reward_margin"] > ctx.metrics[0]["reward_margin"]
    samples = [json.loads(line) for line in (ctx.output("model") / "samples.jsonl").read_text().splitlines()]
    assert samples[0].keys() == {"prompt", "chosen", "rejected", "before", "after"}
    assert [row["prompt"] for row in samples[-2:]] == [[user(prompt)] for prompt in PAPER_PROMPTS]
    assert samples[-1]["chosen"] == samples[-1]["rejected"] == []
    planned = Dpo.facets(ctx.config, {port: [a.facets for a in many] for port, many in artifacts.items()})
    assert planned["model"] == ctx.facets["model"]
    assert agreement(ctx.output("model"), heldout.path) == pytest.approx(accuracy.after)


def test_pairs_that_cannot_be_learned_from_are_counted_and_nothing_left_is_an_error(
    tmp_path: Path, artifacts: Inputs
) -> None:
    bad = [([user("a" * 120)], "b", "c"), ([user("a")], "</s>", "b"), ([user("a")], "b" * 97 + "c", "b" * 97 + "d")]
    mixed = {
        **artifacts,
        "preferences": [tuning.preferences(tmp_path / "mixed", [*pairs(0, 4), ([user("a")], "b" * 120, "c"), *bad])],
    }
    ctx = LocalContext(tmp_path / "1", config(), mixed)
    run(ctx)
    assert ctx.stats["removed"] == {
        "identical within max_length": 1,
        "no answer within max_length": 1,
        "spells a control token": 1,
    }
    assert (ctx.stats["rows"], ctx.stats["truncation_rate"]) == (5, 0.2)
    with pytest.raises(
        InputError, match="test: no pair of its input preferences can be used: of 3, 1 spells a control token"
    ):
        run(
            LocalContext(
                tmp_path / "2", config(), {**artifacts, "preferences": [tuning.preferences(tmp_path / "bad", bad)]}
            )
        )
    (tmp_path / "none").mkdir()
    with PreferenceWriter(tmp_path / "none"):
        pass
    with pytest.raises(InputError, match="test: no pair of its input heldout can be used: of 0, it has none"):
        run(
            LocalContext(
                tmp_path / "3", config(), {**artifacts, "heldout": [local_artifact(Preferences, tmp_path / "none")]}
            )
        )


def test_a_base_model_and_label_smoothing_are_refused(tmp_path: Path, artifacts: Inputs) -> None:
    with pytest.raises(
        ConfigError, match="dpo_x: its parent base has no chat template: wire it to a model that went through 'sft'"
    ):
        Dpo.check_facets("dpo_x", config(), {"parent": [("base", tuning.BASE_FACETS)]})
    with pytest.raises(ConfigError, match="its parent test has no chat template"):
        run(LocalContext(tmp_path / "run", config(), {**artifacts, "parent": [tuning.parent(tmp_path)]}))
    with pytest.raises(ValidationError, match="set label_smoothing = 0"):
        config(label_smoothing=0.1)
