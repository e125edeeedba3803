"""What the tests of fine-tuning share: a small parent model with a trained tokenizer, and small data."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, trainers

from stages.core.artifacts import Artifact, Conversations, Model, Preferences, Problems
from stages.core.context import LocalArtifact
from stages.core.testing import LocalContext, local_artifact
from stages.dpo.spec import DpoConfig
from stages.grpo.spec import GrpoConfig
from stages.lib.finetuning import model_loading
from stages.lib.formats import chat_template, vocabulary
from stages.lib.formats.examples import (
    ConversationWriter,
    Message,
    PreferenceWriter,
    ProblemWriter,
    assistant,
    user,
)
from stages.lib.modeling.decoder import MoxinLM
from stages.lib.modeling.hf_checkpoint import save_child, save_model
from stages.lib.modeling.shape import ModelShape
from stages.sft.spec import SftConfig

SHAPE = ModelShape(layers=2, hidden=32, intermediate=64, heads=4, kv_heads=2, head_dim=8, window=48, max_positions=128)
VOCABULARY = 320
TWO_PHASES: dict[str, Any] = {
    "context_phases": [
        {"steps": 2, "max_response_length": 4, "num_generations": 4},
        {"steps": 3, "max_response_length": 6, "num_generations": 4},
    ],
    "prompts_per_step": 4,
    "max_prompt_length": 60,
    "instruction": "",
    "eval_problems": 2,
    "eval_samples": 1,
    "samples": 1,
    "checkpoint_every": 1,
    "threads": 1,
}
"""Of `grpo`, with an engine that needs GPUs."""
BASE_FACETS: dict[str, str | int] = {
    "architecture": "MistralForCausalLM",
    "tokenizer_digest": "digest",
    "vocab_size": VOCABULARY,
    "context_length": 128,
    "dtype": "float32",
    "chat_template_digest": chat_template.NONE,
}


def tokenizer_folder(folder: Path) -> Path:
    """A small tokenizer in the pipeline's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer, tokenizer.decoder = vocabulary.metaspace_parts()
    letters = sorted(set("abcdefghijklmnopqrstuvwxyz0123456789<|>\n+=?.\\{}/") | {vocabulary.SPACE})
    special = [*vocabulary.SPECIAL, *vocabulary.byte_tokens()]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(["<|user|>\nwhat\n<|assistant|>\nit is"] * 50, trainer)
    while tokenizer.get_vocab_size() < VOCABULARY:
        tokenizer.add_tokens([f"<filler{tokenizer.get_vocab_size()}>"])
    value = json.loads(tokenizer.to_str())
    value["added_tokens"] = [t for t in value["added_tokens"] if t["content"] in vocabulary.SPECIAL]
    vocabulary.save(Tokenizer.from_str(json.dumps(value)), folder)
    return folder


def parent(root: Path, template: str | None = None, seed: int = 0) -> LocalArtifact:
    """A model with random weights: a base model, or with `template` (its text) a tuned one."""
    tokens = tokenizer_folder(root / "tokenizer")
    base = root / "base"
    base.mkdir()
    model = MoxinLM(SHAPE, VOCABULARY)
    model.initialize(seed)
    save_model(model, base, tokens, "card")
    if template is None:
        return local_artifact(Model, base, BASE_FACETS, {"parameters": 1, "benchmarks": ["piqa"]})
    tuned = root / "tuned"
    tuned.mkdir()
    save_child(model.state_dict(), base, tuned, "card", template)
    return local_artifact(Model, tuned, {**BASE_FACETS, "chat_template_digest": chat_template.digest(template)})


def _written(type_: type[Artifact], writer: Any, folder: Path, rows: Iterable[Any]) -> LocalArtifact:
    folder.mkdir(parents=True)
    with writer(folder) as stream:
        for number, row in enumerate(rows):
            stream.add({"id": str(number), "source": "s", "license": "MIT", **row})
    return local_artifact(type_, folder, meta={"rows": number + 1})


def conversations(folder: Path, rows: Iterable[list[Message]]) -> LocalArtifact:
    """Conversations of these turns."""
    return _written(Conversations, ConversationWriter, folder, ({"messages": row} for row in rows))


def preferences(folder: Path, rows: Iterable[tuple[list[Message], str, str]]) -> LocalArtifact:
    """Pairs: prompt, chosen answer, rejected answer."""
    values = ({"prompt": p, "chosen": [assistant(c)], "rejected": [assistant(r)]} for p, c, r in rows)
    return _written(Preferences, PreferenceWriter, folder, values)


def problems(folder: Path, rows: Iterable[tuple[str, str]]) -> LocalArtifact:
    """Problems and answers."""
    return _written(Problems, ProblemWriter, folder, ({"problem": p, "answer": a, "solution": ""} for p, a in rows))


def echoes(start: int, count: int) -> list[list[Message]]:
    """Conversations with a rule that is soon learned: the answer is the question's letter, thrice."""
    letters = "abcdefghijklmnop"
    return [[user(f"what {letters[i % 16]} {i}"), assistant(letters[i % 16] * 3)] for i in range(start, start + count)]


def taught(
    source: LocalArtifact, folder: Path, rows: Iterable[tuple[list[Message], str]], steps: int, seed: int = 0
) -> LocalArtifact:
    """The model of `source` after some steps on these prompts and answers: small, and sure of little."""
    from stages.lib.finetuning.model_loading import load_model, load_tokenizer

    torch.manual_seed(seed)
    path, template = Path(source.path), (Path(source.path) / chat_template.FILE).read_text(encoding="utf-8")
    tokenizer: Any = load_tokenizer(path, template)
    examples = []
    for prompt, answer in rows:
        head = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template([*prompt, assistant(answer)], return_dict=False)
        examples.append((whole, [-100] * len(head) + whole[len(head) :]))
    longest = max(len(ids) for ids, _ in examples)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row, _ in examples])
    labels = torch.tensor([row + [-100] * (longest - len(row)) for _, row in examples])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row, _ in examples])
    model = load_model(path, torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder.mkdir(parents=True)
    save_child(model.state_dict(), path, folder, "card", template)
    return local_artifact(Model, folder, source.facets, dict(source.meta))


def halfway(root: Path) -> dict[str, list[LocalArtifact]]:
    """Inputs of `grpo`: a parent that answers its eight problems in the right form, and right about half of the
    time.
    """
    rows = [(f"{n} + 1 = ?", str(n + 1)) for n in range(8)]
    answers = [
        ([user(p)], f"<think>\n{p[0]}\n</think>\n\\boxed{{{a}}}")
        for p, right in rows
        for a in (right, str(int(right) + 2))
    ]
    return {
        "parent": [taught(parent(root, chat_template.TULU), root / "taught", answers, steps=150)],
        "problems": [problems(root / "train", rows)],
        "heldout": [problems(root / "heldout", rows)],
    }


def sums(root: Path) -> dict[str, list[LocalArtifact]]:
    """Inputs of `grpo`: an untaught parent, nine sums to learn from and eight others."""
    return {
        "parent": [parent(root, chat_template.TULU)],
        "problems": [problems(root / "train", [(f"{n} + 1 = ?", str(n + 1)) for n in range(9)])],
        "heldout": [problems(root / "heldout", [(f"{n} + 2 = ?", str(n + 2)) for n in range(8)])],
    }


def inputs(root: Path, rows: int) -> dict[str, dict[str, list[LocalArtifact]]]:
    """Inputs of `sft`, `dpo` and `grpo`, of one untaught parent. rows: preferences to learn from."""
    one = [parent(root, chat_template.TULU)]
    return {
        "sft": {
            "parent": one,
            "conversations": [conversations(root / "train", echoes(0, 18))],
            "heldout": [conversations(root / "held", echoes(100, 4))],
        },
        "dpo": {
            "parent": one,
            "preferences": [preferences(root / "pairs", pairs(0, rows))],
            "heldout": [preferences(root / "others", pairs(100, 4))],
        },
        "grpo": {**sums(root / "sums"), "parent": one},
    }


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, engine: str, program: Path) -> Path:
    """Let `program` be an engine's interpreter, on a machine that has a GPU as far as the stage is told. Returns the
    path of its record.
    """

    python, record = folder / "python", folder / "record.jsonl"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {program} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv(f"MOXIN_{engine.upper()}_PYTHON", str(python))
    monkeypatch.setenv("STANDIN_RECORD", str(record))
    monkeypatch.setattr(model_loading, "prepare", lambda ctx: (model_loading.quiet(), torch.device("cpu"))[1])
    return record


def runs(record: Path) -> list[dict[str, Any]]:
    """What a stand-in wrote down, run by run."""
    return [json.loads(line) for line in record.read_text().splitlines()]


class Stopping(LocalContext[Any]):
    """Asked to stop once a checkpoint of step `after`, or of a later one, is kept."""

    after = 0

    @property
    def stopping(self) -> bool:
        found = self.checkpoints.latest()
        return found is not None and found[0] >= self.after


def sft_config(**changes: Any) -> SftConfig:
    values: dict[str, Any] = {
        "learning_rate": 1e-2,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "epochs": 2,
        "max_length": 100,
        "max_new_tokens": 8,
        "precision": "fp32",
        "samples": 2,
        "log_every": 1,
        "checkpoint_every": 3,
        "threads": 1,
        "device": "cpu",
    }
    return SftConfig(**(values | changes))


def dpo_config(**changes: Any) -> DpoConfig:
    values: dict[str, Any] = {
        "learning_rate": 5e-3,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "max_length": 100,
        "max_new_tokens": 8,
        "precision": "fp32",
        "samples": 2,
        "log_every": 1,
        "checkpoint_every": 3,
        "threads": 1,
        "device": "cpu",
    }
    return DpoConfig(**(values | changes))


def pairs(start: int, count: int, better: str = "n", worse: str = "y") -> list[tuple[list[Message], str, str]]:
    """The better answers end in one letter, the worse ones in another."""
    return [([user(f"q {n % 7} {n}")], f"{n % 10} {better}", f"{n % 10} {worse}") for n in range(start, start + count)]


def grpo_config(**changes: Any) -> GrpoConfig:
    values: dict[str, Any] = {
        "learning_rate": 1e-2,
        "context_phases": [
            {"steps": 2, "max_response_length": 4, "num_generations": 4},
            {"steps": 3, "max_response_length": 6, "num_generations": 4},
        ],
        "prompts_per_step": 4,
        "num_mini_batches": 2,
        "micro_batch_size": 4,
        "max_prompt_length": 60,
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
