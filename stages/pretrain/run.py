"""Run `pretrain`: build or load the model, train one phase, write an ordinary Hugging Face folder."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import torch

from stages.core.context import Context
from stages.core.errors import ConfigError
from stages.lib.modeling import flex
from stages.lib.modeling.config_file import ARCHITECTURE, read_shape
from stages.lib.modeling.decoder import MoxinLM
from stages.lib.modeling.device import compute_device
from stages.lib.modeling.hf_checkpoint import config_json, save_beside
from stages.lib.modeling.processor import prepare
from stages.lib.modeling.weights import FreshWeights, StoredWeights, Weights
from stages.lib.training import validation
from stages.lib.training.backends.factory import make_backend
from stages.lib.training.carried_moments import CarriedMoments, export_moments
from stages.lib.training.evaluation import HeldOutEvaluation
from stages.lib.training.export import export
from stages.lib.training.first_state import FirstState
from stages.lib.training.lr_scheduler import WarmupCosine
from stages.lib.training.meeting import meeting
from stages.lib.training.parallel_dims import ParallelDims, distributed, world_size
from stages.lib.training.trainer import Trainer
from stages.pretrain.card import model_card
from stages.pretrain.data import open_windows
from stages.pretrain.spec import PretrainConfig

__all__ = ["meeting", "run"]  # the runtime has processes join it before they stage their inputs in


def run(ctx: Context[PretrainConfig]) -> None:
    """Train one phase."""
    config = ctx.config
    prepare(config.threads)
    validation.require_fitting_processes(ctx.node, config, world_size())
    device = compute_device(ctx.node, config.device, config.precision)
    with distributed(ctx, device, config.parallel.model_parallel_size) as dims:
        _train(ctx, dims)


def schedule(config: PretrainConfig) -> WarmupCosine:
    """The learning rate of each step (paper 3.4)."""
    return WarmupCosine(config.learning_rate, config.steps, config.warmup_steps, config.min_lr_ratio)


def _train(ctx: Context[PretrainConfig], dims: ParallelDims) -> None:
    config = ctx.config
    if dims.device.type == "cuda" and config.compiles:
        require_compiler(ctx.node, dims.device)
    vocabulary = int(ctx.input("tokenizer").facets["vocab_size"])
    data = open_windows(ctx, dims)
    model, first = _model(ctx, vocabulary)
    model.flexible = config.attention == "flex"
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    parameters = sum(shape.numel() for shape in shapes.values())
    backend = make_backend(model, first, config, dims)
    ctx.log(
        f"{parameters:,} parameters on {_machines(dims)}; {config.steps:,} steps of {config.global_batch_size} x"
        f" {config.sequence_length} tokens; {len(data.train):,} windows to train on,"
        f" {len(data.heldout) if data.heldout else 0} held out"
    )
    evaluation = (
        HeldOutEvaluation(ctx, backend, dims, data.heldout_batches, config.eval_every) if data.heldout else None
    )
    carried = CarriedMoments(ctx.input("parent_moments").entries()) if config.carry_moments else None
    trainer = Trainer(ctx, backend, data, dims, schedule(config), FirstState(first, shapes, carried), evaluation)
    with contextlib.closing(data):
        trainer.run()
    stats = {"parameters": parameters, "epochs": round(config.steps * config.global_batch_size / len(data.train), 4)}
    stats |= _stats(config, trainer, evaluation, dims, vocabulary)
    ctx.stat(**stats)
    export(ctx, "model", dims, shapes, backend.export)
    if config.export_moments:
        export_moments(ctx, "moments", dims, shapes, backend, trainer.updates)
    if dims.rank == 0:
        _describe(ctx, stats, data.train.index)


def _stats(
    config: PretrainConfig, trainer: Trainer, evaluation: HeldOutEvaluation | None, dims: ParallelDims, vocabulary: int
) -> dict[str, Any]:
    """What the training did, for the card and the report."""
    tokens = trainer.tokens
    speed, gpu = tokens / trainer.seconds, dims.device.type == "cuda"
    val_loss = math.nan if evaluation is None else evaluation.val_loss
    stats: dict[str, Any] = {
        "steps": config.steps,
        "tokens": tokens,
        "final_loss": round(trainer.loss, 6),
        "val_loss": round(val_loss, 6) if math.isfinite(val_loss) else None,
        "skipped_steps": trainer.skipped,
        "processes": dims.world_size,
        "tokens_per_second": round(speed),
        **trainer.loader_rate,
        **trainer.guard.statistics(),
        "tflops_per_second": round(speed * config.shape.flops_per_token(vocabulary, config.sequence_length) / 1e12, 4),
        "device": torch.cuda.get_device_name() if gpu else "cpu",
    }
    if evaluation is not None and evaluation.unmeasured:
        stats["unmeasured"] = dict(sorted(evaluation.unmeasured.items()))
    if gpu:
        stats["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    return stats


def _describe(ctx: Context[PretrainConfig], stats: Mapping[str, Any], index: Mapping[str, Any]) -> None:
    """What lies beside the weights in the model's folder, its facets and meta. index: `index.json` of the shards."""
    tokenizer, shape, benchmarks = ctx.input("tokenizer"), ctx.config.shape, _benchmarks(ctx)
    config = config_json(shape, int(tokenizer.facets["vocab_size"]), "float32")
    save_beside(ctx.output("model"), config, tokenizer.path, model_card(ctx, stats, index, benchmarks))
    of_both: dict[str, str | int] = {
        "architecture": ARCHITECTURE,
        "tokenizer_digest": str(tokenizer.facets["tokenizer_digest"]),
        "vocab_size": int(tokenizer.facets["vocab_size"]),
    }
    facets = of_both | {
        "context_length": shape.max_positions,
        "dtype": "float32",
        "chat_template_digest": "none",
    }
    meta = {"parameters": stats["parameters"], "benchmarks": benchmarks, "shape": shape.model_dump()}
    ctx.describe("model", facets=facets, meta=meta)
    if ctx.config.export_moments:
        ctx.describe("moments", facets=of_both)


def require_compiler(node: str, device: torch.device) -> None:
    """Raise ConfigError when kernels cannot be made here: at the start, and not at the first held-out window, hours
    later.
    """
    problem = flex.problem(device)
    if problem:
        raise ConfigError(
            f"{node}: kernels cannot be compiled on this machine ({problem}): give its image a C compiler (gcc), or"
            f" set "
            f"{node}.attention = 'blocks' and {node}.compile = false, which compile nothing"
        )


def _machines(dims: ParallelDims) -> str:
    if dims.world_size == 1:
        return dims.device.type
    return (
        f"{dims.world_size} {dims.device.type} processes ({dims.data_parallel_size} parts of the batch,"
        f" {dims.model_parallel_size} processes"
        " on each)"
    )


def _model(ctx: Context[PretrainConfig], vocabulary: int) -> tuple[MoxinLM, Weights]:
    """The model without memory, and what it begins with: the parent's weights, or fresh ones."""
    config = ctx.config
    with torch.device("meta"):
        model = MoxinLM(config.shape, vocabulary, config.dropout, config.recompute)
    parents = ctx.inputs("parent")
    if not parents:
        return model, FreshWeights(config.seed, config.shape.layers)
    shape, entries = read_shape(parents[0].path)
    if shape != config.shape:
        here, there = config.shape.model_dump(), shape.model_dump()
        key = next(k for k in here if here[k] != there[k])
        raise ConfigError(
            f"{ctx.node}.shape.{key} is {here[key]}, but its parent {parents[0].node} has {there[key]}: make them equal"
        )
    if entries != vocabulary:
        raise ConfigError(
            f"{ctx.node}: the tokenizer has {vocabulary} entries, its parent {parents[0].node} has {entries}"
        )
    return model, StoredWeights(parents[0].path).require(model)


def _benchmarks(ctx: Context[PretrainConfig]) -> list[str]:
    """Benchmarks whose training splits this model or one of its parents was trained on."""
    names: set[str] = set()
    for artifact in [ctx.input("tokens"), *ctx.inputs("parent")]:
        names.update(artifact.meta.get("benchmarks", ()))
    return sorted(names)
