"""The trained model, safe before anything else is done with it: its folder, and a last checkpoint that holds it.

An attempt that ends after training (a measurement that was killed, a machine that went away) does not train again: its
successor finds the checkpoint with `trained.json` and goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stages.core.context import Context
from stages.lib.engines.checkpoint_conversion import link_tree
from stages.lib.finetuning import model_loading
from stages.lib.finetuning.trl_trainer import diverged
from stages.lib.modeling.hf_checkpoint import save_child

TRAINED = "trained.json"
WEIGHTS = "child"


def keep(ctx: Context[Any], model: torch.nn.Module, template: str, step: int, **stats: Any) -> dict[str, Any]:
    """Write the child's folder into the output `model` and publish it as the checkpoint after the last step.

    stats: JSON values about the training that the checkpoint keeps. Returns them, with the number of parameters. Raises
    ConfigError where a weight is no number: whatever the engine told, that is no model.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise diverged(ctx, f"the weight {name} holds what is no number", step)
    kept = {**stats, "parameters": sum(p.numel() for p in model.parameters())}
    folder = Path(ctx.output("model"))
    save_child(model.state_dict(), Path(ctx.input("parent").path), folder, "", template)
    checkpoint = Path(ctx.scratch) / "trained"
    link_tree(folder, checkpoint / WEIGHTS)
    (checkpoint / TRAINED).write_text(json.dumps(kept), encoding="utf-8")
    ctx.checkpoints.save(step + 1, checkpoint)
    return kept


def trouble(kept: Mapping[str, Any]) -> dict[str, Any]:
    """The steps that were left out, as a statistic; {}: there was none."""
    return {"trouble": kept["trouble"]} if "trouble" in kept else {}


def restore(ctx: Context[Any], checkpoint: tuple[int, Any] | None) -> dict[str, Any] | None:
    """Put the child of a training that is over into the output `model`; None: the newest checkpoint is not that
    of one.
    """
    if checkpoint is None or not (Path(checkpoint[1]) / TRAINED).is_file():
        return None
    link_tree(Path(checkpoint[1]) / WEIGHTS, Path(ctx.output("model")))
    ctx.log("training is over already; what is left is to measure")
    return json.loads((Path(checkpoint[1]) / TRAINED).read_text(encoding="utf-8"))


def describe(ctx: Context[Any], template: str, card: str, parameters: int) -> Path:
    """Write the card, state facets and numbers, return the folder."""
    folder = Path(ctx.output("model"))
    path = folder / "README.md"
    path.unlink(missing_ok=True)  # it may be a link to the checkpoint's
    path.write_text(card, encoding="utf-8")
    model_loading.describe_child(ctx, template, parameters)
    return folder
