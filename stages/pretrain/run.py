"""Run `pretrain`: build or load the model, train one phase, write an ordinary Hugging Face folder."""

from __future__ import annotations

import torch

from stages.core.contracts import ConfigError, Context, Preempted
from stages.modeling.decoder import MoxinLM
from stages.modeling.folder import ARCHITECTURE, load_model, read_shape, save_model
from stages.modeling.processor import prepare
from stages.pretrain.card import model_card
from stages.pretrain.engine import make_engine
from stages.pretrain.loop import Trainer, open_shards
from stages.pretrain.spec import PretrainConfig
from stages.pretrain.world import World, join


def run(ctx: Context[PretrainConfig]) -> None:
    """Train one phase."""
    config = ctx.config
    prepare(config.threads)
    world = join(config, ctx.node, _device(ctx))
    try:
        _train(ctx, world)
    except RuntimeError as error:
        if world.lost(error):
            raise Preempted("another process of this stage was lost; the next attempt goes on from the last checkpoint") from error
        raise
    finally:
        world.leave()


def _train(ctx: Context[PretrainConfig], world: World) -> None:
    config, device = ctx.config, world.device
    tokenizer = ctx.input("tokenizer")
    vocabulary = int(tokenizer.facets["vocab_size"])
    train, heldout = open_shards(ctx, lambda line: ctx.log(line, "warning"))
    model = _model(ctx, vocabulary)
    parameters = sum(p.numel() for p in model.parameters())
    engine = make_engine(model, config, world)
    ctx.log(
        f"{parameters:,} parameters on {_machines(world)}; {config.steps:,} steps of {config.batch_windows} x {config.sequence_length} "
        f"tokens; {len(train):,} windows to train on, {len(heldout) if heldout else 0} held out"
    )
    trainer = Trainer(ctx, engine, train, heldout, world)
    trainer.run()
    tokens = config.steps * trainer.batch_tokens
    speed = tokens / trainer.seconds
    stats = {
        "parameters": parameters,
        "steps": config.steps,
        "tokens": tokens,
        "epochs": round(config.steps * config.batch_windows / len(train), 4),
        "final_loss": round(trainer.loss, 6),
        "val_loss": round(trainer.val_loss, 6) if heldout else None,
        "skipped_steps": trainer.skipped,
        "processes": world.size,
        "tokens_per_second": round(speed),
        "tflops_per_second": round(speed * config.shape.flops_per_token(vocabulary, config.sequence_length) / 1e12, 4),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }
    if device.type == "cuda":
        stats["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    ctx.stat(**stats)
    benchmarks = _benchmarks(ctx)
    card = model_card(ctx, stats, train.index, benchmarks)
    weights = engine.export()
    if world.rank > 0:
        return
    save_model(model, ctx.output("model"), tokenizer.path, card, config.dropout, weights)
    facets = {
        "architecture": ARCHITECTURE,
        "tokenizer_digest": str(tokenizer.facets["tokenizer_digest"]),
        "vocab_size": vocabulary,
        "context_length": config.shape.max_positions,
        "dtype": "float32",
        "chat_template_digest": "none",
    }
    ctx.describe("model", facets=facets, meta={"parameters": parameters, "benchmarks": benchmarks})


def _machines(world: World) -> str:
    if world.size == 1:
        return world.device.type
    return f"{world.size} {world.device.type} processes ({world.data_size} parts of the batch, {world.together} processes on each)"


def _device(ctx: Context[PretrainConfig]) -> torch.device:
    config = ctx.config
    gpu = torch.cuda.is_available()
    if config.device == "cuda" and not gpu:
        raise ConfigError(f"{ctx.node}.device = 'cuda', but this machine has no GPU: set 'auto' or 'cpu'")
    device = torch.device("cuda" if gpu and config.device != "cpu" else "cpu")
    if device.type == "cpu" and config.precision != "fp32":
        raise ConfigError(
            f"{ctx.node}.precision = '{config.precision}' on a CPU: half precision is about 100 times slower there "
            "than fp32; set precision = 'fp32', or run on a GPU"
        )
    return device


def _model(ctx: Context[PretrainConfig], vocabulary: int) -> MoxinLM:
    """The parent's model, or a fresh one."""
    config = ctx.config
    parents = ctx.inputs("parent")
    if not parents:
        model = MoxinLM(config.shape, vocabulary, config.dropout, config.recompute)
        model.initialize(torch.Generator().manual_seed(config.seed))
        return model
    shape, entries = read_shape(parents[0].path)
    if shape != config.shape:
        own, other = config.shape.model_dump(), shape.model_dump()
        key = next(k for k in own if own[k] != other[k])
        raise ConfigError(f"{ctx.node}.shape.{key} is {own[key]}, but its parent {parents[0].node} has {other[key]}: make them equal")
    if entries != vocabulary:
        raise ConfigError(f"{ctx.node}: the tokenizer has {vocabulary} entries, its parent {parents[0].node} has {entries}")
    return load_model(parents[0].path, config.dropout, config.recompute)


def _benchmarks(ctx: Context[PretrainConfig]) -> list[str]:
    """Benchmarks whose training splits this model or one of its parents was trained on."""
    found: set[str] = set()
    for artifact in [ctx.input("tokens"), *ctx.inputs("parent")]:
        found.update(artifact.meta.get("benchmarks", ()))
    return sorted(found)
