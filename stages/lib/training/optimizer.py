"""AdamW over float32 weights: its parameter groups and its state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.lib.training.config import OptimizerConfig

PRECISION = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Of matrix products, by the configuration's name."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter, without its count of steps, which the trainer knows."""
WEIGHT = "model"
"""Beside the moments: the parameter itself."""


def stored_name(parameter: str, kept: str) -> str:
    """The name, in a checkpoint, of a parameter (WEIGHT) or of one of its moments."""
    return f"{WEIGHT}.{parameter}" if kept == WEIGHT else f"optimizer.{parameter}.{kept}"


def make_optimizer(
    model: nn.Module, config: OptimizerConfig, kind: type[torch.optim.AdamW] = torch.optim.AdamW
) -> torch.optim.AdamW:
    """AdamW, one fused kernel, over what requires a gradient.

    Weight decay on matrices only: scales of norms and biases have no direction to shrink.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return kind(groups, lr=config.learning_rate, betas=betas, eps=config.eps, fused=True)


def moments_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """AdamW's state of a parameter, of the parameter's shape; zeros are put there when there is none yet."""
    state = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), device=parameter.device if parameter.is_cuda else "cpu")
        state |= {key: torch.zeros_like(parameter.detach()) for key in MOMENTS}
    return state


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
