"""The device that a model runs on."""

from __future__ import annotations

import torch

from stages.core.errors import ConfigError


def compute_device(node: str, device: str, precision: str) -> torch.device:
    """The kind of device that a configuration asks for ('auto', 'cpu', 'cuda').

    Raises ConfigError without a GPU where one is asked for, and for half precision on a CPU.
    """
    gpu = torch.cuda.is_available()
    if device == "cuda" and not gpu:
        raise ConfigError(f"{node}.device = 'cuda', but this machine has no GPU: set 'auto' or 'cpu'")
    chosen = torch.device("cuda" if gpu and device != "cpu" else "cpu")
    if chosen.type == "cpu" and precision != "fp32":
        raise ConfigError(
            f"{node}.precision = '{precision}' on a CPU: half precision is about 100 times slower there "
            "than fp32; set precision = 'fp32', or run on a GPU"
        )
    return chosen
