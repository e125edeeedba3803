"""Run `vlm`: encode the rows, train projector and decoder, write a folder that holds the towers too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from stages.core.contracts import ConfigError, Context, InputError
from stages.formats import vocabulary
from stages.modeling.folder import read_shape
from stages.vision import folder as folders
from stages.vision.conversations import ImageReader, read_rows
from stages.vision.features import Features
from stages.vision.images import MAX_BYTES, decode
from stages.vision.modeling_moxin_vlm import pixel_values, tower_features
from stages.vision.towers import load_towers, patches
from stages.vlm import workers
from stages.vlm.batches import Rows, encode_rows
from stages.vlm.card import model_card
from stages.vlm.loop import Look, Reporter, Trainer
from stages.vlm.spec import ARCHITECTURE, VlmConfig, padded


class ContextReporter:
    """The loop's reporter in the stage's own process."""

    def __init__(self, ctx: Context[VlmConfig]) -> None:
        self._ctx = ctx
        self.metric, self.progress, self.log = ctx.metric, ctx.progress, ctx.log

    @property
    def stopping(self) -> bool:
        return self._ctx.stopping

    def save(self, step: int, folder: Path) -> None:
        self._ctx.checkpoints.save(step, folder)


def run(ctx: Context[VlmConfig]) -> None:
    """Train and write the model."""
    config = ctx.config
    device = _device(ctx)
    torch.set_num_threads(config.threads)
    folders.quiet()
    base, towers = ctx.input("base").path, ctx.input("towers").path
    shape, entries = read_shape(base)
    count = patches(*tower_configs(towers))
    tokenizer = vocabulary.load(base)
    if tokenizer.get_vocab_size() != entries:
        raise InputError(f"the base model has {entries} embeddings, its tokenizer {tokenizer.get_vocab_size()} entries")
    rows, counts = encode_rows(read_rows(ctx.input("conversations").path), tokenizer, entries + 1, count, config.max_length)
    for reason, number in counts.items():
        ctx.log(f"{number} rows {reason}", "warning")
    if not len(rows):
        raise InputError(f"{ctx.node}: the rows of {ctx.input('conversations').node} leave nothing to train on")
    _check_features(ctx, rows)
    ctx.log(f"{len(rows):,} rows, {len(rows.ids):,} tokens, {int(rows.answers.sum()):,} of them in answers, {len(rows.names):,} images")
    result = _train(ctx, rows, entries, device)
    model = folders.build(base, *tower_configs(towers), padded(entries), config.seed)
    model.load_state_dict(result.pop("weights"))
    model.dino, model.siglip = load_towers(towers)
    _write(ctx, model, result | {"rows": len(rows), "patches": count, "counts": dict(counts)}, shape.max_positions)


def tower_configs(folder: Path) -> tuple[Any, Any]:
    """The towers' configurations. Raises InputError."""
    try:
        return tuple(AutoConfig.from_pretrained(folder / name, local_files_only=True) for name in ("dino", "siglip"))  # type: ignore[return-value]
    except (OSError, ValueError) as error:
        raise InputError(f"the towers' configuration cannot be read: {str(error).splitlines()[0]}") from error


def _device(ctx: Context[VlmConfig]) -> torch.device:
    config, gpu = ctx.config, torch.cuda.is_available()
    if config.device == "cuda" and not gpu:
        raise ConfigError(f"{ctx.node}.device = 'cuda', but this machine has no GPU: set 'auto' or 'cpu'")
    device = torch.device("cuda" if gpu and config.device != "cpu" else "cpu")
    if device.type == "cpu" and config.precision != "fp32":
        raise ConfigError(f"{ctx.node}.precision = '{config.precision}' on a CPU is about 100 times slower than fp32: set 'fp32', or run on a GPU")
    if device.type == "cuda" and config.processes > torch.cuda.device_count():
        raise ConfigError(f"{ctx.node}.processes = {config.processes}, but this machine has {torch.cuda.device_count()} GPUs")
    return device


def _check_features(ctx: Context[VlmConfig], rows: Rows) -> None:
    """Stored features must be of these very images."""
    if not ctx.inputs("features"):
        return
    found, conversations = Features(ctx.input("features").path), ctx.input("conversations")
    if found.digest != conversations.manifest.digest:
        raise InputError(f"{ctx.node}: the features of {ctx.input('features').node} were made of other images than those of {conversations.node}")
    missing = [name for name in rows.names if name not in found]
    if missing:
        raise InputError(f"{ctx.node}: {len(missing)} images have no features, such as {missing[0]}")


def _train(ctx: Context[VlmConfig], rows: Rows, entries: int, device: torch.device) -> dict[str, Any]:
    """Train in this process or in several; returns weights, loss, seconds, tokens, steps."""
    found = ctx.checkpoints.latest()
    features = ctx.inputs("features")
    job = {
        "config": ctx.config.model_dump(mode="json"),
        "base": str(ctx.input("base").path),
        "towers": str(ctx.input("towers").path),
        "features": str(features[0].path) if features else None,
        "images": [str(path) for path in ctx.input("conversations").files(".zip")],
        "entries": entries,
        "resume": str(found[1]) if found else None,
    }
    folder = Path(ctx.scratch) / "job"
    folder.mkdir(exist_ok=True)
    rows.save(folder / "rows.npz")
    if ctx.config.processes > 1:
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        last = workers.train(ctx, folder)
        weights = torch.load(folder / workers.WEIGHTS, map_location="cpu", weights_only=True)
        return {"weights": weights} | {name: last[name] for name in ("loss", "seconds", "tokens", "steps")}
    trainer = make_trainer(ContextReporter(ctx), ctx.config, job, folder, device)
    trainer.run(found[1] if found else None)
    return {"weights": trainer.weights(), "loss": trainer.loss, "seconds": trainer.seconds, "tokens": trainer.tokens, "steps": trainer.steps}


def make_trainer(reporter: Reporter, config: VlmConfig, job: Mapping[str, Any], folder: Path, device: torch.device) -> Trainer:
    """The trainer of a job, in whichever process."""
    rows = Rows.load(folder / "rows.npz")
    towers = Path(job["towers"])
    model = folders.build(Path(job["base"]), *tower_configs(towers), padded(job["entries"]), config.seed)
    if job["features"] is not None:
        look: Look = Features(Path(job["features"])).batch
    else:
        look = TowerLook(towers, [Path(path) for path in job["images"]], device)
    return Trainer(reporter, config, model, rows, look, device, folder)


class TowerLook:
    """Looks at images through the towers whenever they are asked for: what stored features save."""

    def __init__(self, towers: Path, archives: list[Path], device: torch.device) -> None:
        dino, siglip = load_towers(towers)
        self._dino, self._siglip, self._device = dino.to(device), siglip.to(device), device
        self._size = int(siglip.config.image_size)
        self._images = ImageReader(archives, MAX_BYTES)

    @torch.no_grad()
    def __call__(self, names: list[str]) -> torch.Tensor:
        """Patch features [B, P, F]."""
        pixels = pixel_values([decode(self._images[name])[0] for name in names], self._size)
        return tower_features(self._dino, self._siglip, pixels.to(self._device))


def _write(ctx: Context[VlmConfig], model: Any, result: Mapping[str, Any], context_length: int) -> None:
    """The model's folder, facets and statistics."""
    parameters = sum(p.numel() for p in model.parameters())
    frozen = sum(p.numel() for tower in (model.dino, model.siglip) for p in tower.parameters())
    stats = {
        "parameters": parameters,
        "tower_parameters": frozen,
        "rows": result["rows"],
        "patches": result["patches"],
        "steps": result["steps"],
        "final_loss": round(result["loss"], 6),
        "tokens": result["tokens"],
        "tokens_per_second": round(result["tokens"] / result["seconds"]),
        "features": "stored" if ctx.inputs("features") else "computed for every batch",
        "rows_cut_or_left_out": result["counts"],
    }
    ctx.stat(**stats)
    folder = Path(ctx.output("model"))
    card = model_card(ctx, stats, model.config.siglip_config.image_size)
    folders.save(model, folder, Path(ctx.input("base").path), card)
    facets = {
        "architecture": ARCHITECTURE,
        "tokenizer_digest": vocabulary.digest(folder),
        "vocab_size": model.config.text_config.vocab_size,
        "context_length": context_length,
        "dtype": "float32",
        "chat_template_digest": "none",
    }
    benchmarks = sorted(ctx.input("base").meta.get("benchmarks", ()))
    ctx.describe("model", facets=facets, meta={"parameters": parameters, "benchmarks": benchmarks})
