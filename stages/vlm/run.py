"""Run `vlm`: encode the rows, train projector and decoder, write a folder that holds the towers too."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from stages.core.context import Context
from stages.core.errors import InputError
from stages.lib.formats import vocabulary
from stages.lib.modeling.config_file import read_shape
from stages.lib.modeling.device import compute_device
from stages.lib.modeling.recompute import selective_contexts
from stages.lib.modeling.weights import StoredWeights, whole
from stages.lib.training import validation
from stages.lib.training.backends.base import Backend, Trainable
from stages.lib.training.backends.fsdp import TorchBackend
from stages.lib.training.export import export
from stages.lib.training.first_state import FirstState
from stages.lib.training.lr_scheduler import WarmupCosine
from stages.lib.training.meeting import meeting
from stages.lib.training.parallel_dims import ParallelDims, distributed, world_size
from stages.lib.training.trainer import Trainer
from stages.lib.vision import hf_checkpoint
from stages.lib.vision.conversations import read_rows
from stages.lib.vision.features import Features
from stages.lib.vision.modeling_moxin_vlm import MoxinVLM
from stages.lib.vision.towers import patches
from stages.vlm.batches import Rows, encode_rows
from stages.vlm.card import model_card
from stages.vlm.data import AnswerLoss, RowData, TowerFeatures
from stages.vlm.spec import ARCHITECTURE, VlmConfig, padded

__all__ = ["meeting", "run"]  # the runtime has processes join it before they stage their inputs in
TOWERS = ("dino.", "siglip.")
"""What the names of the towers' weights begin with."""


def run(ctx: Context[VlmConfig]) -> None:
    """Train and write the model."""
    config = ctx.config
    torch.set_num_threads(config.threads)
    hf_checkpoint.quiet()
    validation.require_fitting_processes(ctx.node, config, world_size())
    device = compute_device(ctx.node, config.device, config.precision)
    _, vocabulary_size = read_shape(ctx.input("base").path)
    rows, counts = _encoded_rows(ctx, vocabulary_size)  # before: no exchange waits as long as that can take
    with distributed(ctx, device) as dims:
        _train(ctx, dims, rows, counts)


def schedule(config: VlmConfig, steps: int) -> WarmupCosine:
    """The learning rate of each step: upstream's, which is transformers' schedule."""
    warmup_steps = round(config.warmup_ratio * steps)
    return WarmupCosine(config.learning_rate, steps, warmup_steps, ends_at_last_step=False)


def _train(ctx: Context[VlmConfig], dims: ParallelDims, rows: Rows, counts: Counter[str]) -> None:
    config, base, towers = ctx.config, ctx.input("base").path, ctx.input("towers").path
    _, vocabulary_size = read_shape(base)
    stored = Features(ctx.input("features").entries()) if ctx.inputs("features") else None
    data = RowData(config, rows, dims, stored)
    model = hf_checkpoint.outline(base, *tower_configs(towers), padded(vocabulary_size))
    first = hf_checkpoint.FirstWeights(base, model, config.seed)
    if config.recompute != "none":
        selective = {"context_fn": selective_contexts} if config.recompute == "selective" else {}
        model.language_model.activation_checkpointing_enable({"use_reentrant": False, **selective})
    archives = list(ctx.input("conversations").files(".zip"))
    computed = None if stored is not None else TowerFeatures(towers, archives, dims.device)
    loss = AnswerLoss(model, rows, computed, dims.device)
    blocks = list(model.language_model.model.layers)
    beginning = FirstState(first, {name: parameter.shape for name, parameter in model.named_parameters()})
    backend = TorchBackend(Trainable(model, first, blocks, loss), config, dims, cast_weights=True)
    trainer = Trainer(ctx, backend, data, dims, schedule(config, data.steps), beginning)
    with contextlib.closing(data):
        trainer.run()
    stats = {
        "rows": len(rows),
        "patches": patches(*tower_configs(towers)),
        "steps": trainer.steps,
        "processes": dims.world_size,
        "final_loss": round(trainer.loss, 6),
        "tokens": trainer.tokens,
        "tokens_per_second": round(trainer.tokens / trainer.seconds),
        **trainer.loader_rate,
        **trainer.guard.statistics(),
        "features": "stored" if stored is not None else "computed for every batch",
        "rows_cut_or_left_out": dict(counts),
    }
    _write(ctx, backend, dims, stats)


def _encoded_rows(ctx: Context[VlmConfig], vocabulary_size: int) -> tuple[Rows, Counter[str]]:
    """The rows as token ids, and what was left out or cut by reason. Raises InputError for inputs that do not fit."""
    base, config = ctx.input("base").path, ctx.config
    tokenizer = vocabulary.load(base)
    if tokenizer.get_vocab_size() != vocabulary_size:
        raise InputError(
            f"the base model has {vocabulary_size} embeddings, its tokenizer {tokenizer.get_vocab_size()} entries"
        )
    conversations = read_rows(ctx.input("conversations").path)
    count = patches(*tower_configs(ctx.input("towers").path))
    rows, counts = encode_rows(conversations, tokenizer, vocabulary_size + 1, count, config.max_length)
    for reason, number in counts.items():
        ctx.log(f"{number} rows {reason}", "warning")
    if not len(rows):
        raise InputError(f"{ctx.node}: the rows of {ctx.input('conversations').node} leave nothing to train on")
    _check_features(ctx, rows)
    ctx.log(
        f"{len(rows):,} rows, {len(rows.ids):,} tokens, {int(rows.answers.sum()):,} of them in answers,"
        f" {len(rows.names):,} images"
    )
    return rows, counts


def tower_configs(folder: Path) -> tuple[Any, Any]:
    """The towers' configurations. Raises InputError."""
    try:
        return tuple(AutoConfig.from_pretrained(folder / name, local_files_only=True) for name in ("dino", "siglip"))  # type: ignore[return-value]
    except (OSError, ValueError) as error:
        raise InputError(f"the towers' configuration cannot be read: {str(error).splitlines()[0]}") from error


def _check_features(ctx: Context[VlmConfig], rows: Rows) -> None:
    """Stored features must be of these very images."""
    if not ctx.inputs("features"):
        return
    stored, conversations = Features(ctx.input("features").entries()), ctx.input("conversations")
    if stored.digest != conversations.manifest.digest:
        raise InputError(
            f"{ctx.node}: the features of {ctx.input('features').node} were made of other images than those of"
            f" {conversations.node}"
        )
    missing = [name for name in rows.names if name not in stored]
    if missing:
        raise InputError(f"{ctx.node}: {len(missing)} images have no features, such as {missing[0]}")


def _write(ctx: Context[VlmConfig], backend: Backend, dims: ParallelDims, stats: dict[str, Any]) -> None:
    """The model's folder, facets and statistics. stats: what the training did. Every process calls it."""
    base, towers = ctx.input("base"), ctx.input("towers").path
    shape, vocabulary_size = read_shape(base.path)
    model = hf_checkpoint.outline(base.path, *tower_configs(towers), padded(vocabulary_size), towers=True)
    frozen = _tower_weights(towers, model)
    trained = {name: value.shape for name, value in model.state_dict().items() if not name.startswith(TOWERS)}

    def fetch(name: str, writer: int) -> Tensor | None:
        if name in trained:
            return backend.export(name, writer)
        return frozen[name](writer == dims.rank)

    export(ctx, "model", dims, {name: weight.shape for name, weight in frozen.items()} | trained, fetch)
    if dims.rank:
        return
    parameters = sum(p.numel() for p in model.parameters())
    tower_parameters = sum(p.numel() for name, p in model.named_parameters() if name.startswith(TOWERS))
    stats = {"parameters": parameters, "tower_parameters": tower_parameters, **stats}
    ctx.stat(**stats)
    folder = Path(ctx.output("model"))
    card = model_card(ctx, stats, model.config.siglip_config.image_size)
    hf_checkpoint.save_beside(model, folder, base.path, card)
    facets = {
        "architecture": ARCHITECTURE,
        "tokenizer_digest": vocabulary.digest(folder),
        "vocab_size": model.config.text_config.vocab_size,
        "context_length": shape.max_positions,
        "dtype": "float32",
        "chat_template_digest": "none",
    }
    benchmarks = sorted(base.meta.get("benchmarks", ()))
    ctx.describe("model", facets=facets, meta={"parameters": parameters, "benchmarks": benchmarks})


@dataclass(frozen=True)
class _TowerWeight:
    """One of the towers' weights as it is stored."""

    stored: StoredWeights
    name: str
    shape: Sequence[int]

    def __call__(self, here: bool) -> Tensor | None:
        return self.stored(self.name, self.shape, whole(self.shape)) if here else None


def _tower_weights(folder: Path, model: MoxinVLM) -> dict[str, _TowerWeight]:
    """The towers' weights under the names that a model's file has. model: its outline. Raises InputError when they are
    not those of its towers.
    """
    weights: dict[str, _TowerWeight] = {}
    for tower in ("dino", "siglip"):
        stored = StoredWeights(folder / tower)
        shapes = stored.shapes()
        expected = sum(p.numel() for name, p in model.named_parameters() if name.startswith(f"{tower}."))
        if sum(map(math.prod, shapes.values())) != expected:
            raise InputError(f"the tower's folder {tower} does not hold the weights that its config.json tells of")
        weights |= {f"{tower}.{name}": _TowerWeight(stored, name, shape) for name, shape in shapes.items()}
    return weights
