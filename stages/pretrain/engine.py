"""What the training loop asks of an engine: a step, a look at held-out windows, checkpoints, the trained weights.

`fsdp.TorchEngine` and `colossal.ColossalEngine` are the two. Both train `stages.modeling.decoder.MoxinLM` on the same parts of the
same batches, and keep their checkpoints under the same names: float32 weights and moments, whatever the precision and the topology.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from stages.modeling.decoder import MoxinLM
from stages.modeling.noise import Noise
from stages.pretrain.spec import PretrainConfig
from stages.pretrain.world import World

INITIAL_SCALE = 2.0**16
"""Loss scale that fp16 begins with: at 2**32 (Colossal-AI's default) the first steps overflow (facts/pretraining.md 2)."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter, without its count of steps, which the loop knows."""


@dataclass(frozen=True)
class Batch:
    """Windows of one forward pass. ids [B, T]; documents [B, T]: which document a token belongs to; sequences [B]: numbers in the run."""

    ids: Tensor
    documents: Tensor | None = None
    sequences: Tensor | None = None
    predicted: int = 0

    def split(self, size: int) -> list[Batch]:
        """Cut into parts of `size` windows, and a smaller last one."""
        parts = []
        for start in range(0, len(self.ids), size):
            ids, documents, sequences = (x if x is None else x[start : start + size] for x in (self.ids, self.documents, self.sequences))
            assert ids is not None
            parts.append(Batch(ids, documents, sequences))
        return parts


@dataclass(frozen=True)
class Update:
    """What a step did. loss: summed over the tokens that this process saw, so that the sum over all processes is the batch's."""

    loss: float
    norm: float
    """Of the whole gradient, before clipping."""
    overflow: bool = False
    """fp16: some gradient was too large for it, so nothing was updated, and the next step has a smaller scale."""


class Engine(Protocol):
    """A model and its optimizer, spread over the processes."""

    def step(self, batches: Sequence[Batch], rate: float, predicted: float) -> Update:
        """One optimizer step on this process's micro-batches. predicted: tokens of the global batch whose loss counts."""
        ...

    def evaluate(self, batch: Batch) -> float:
        """Summed loss, as in `Update`. Every process has to call it as often."""
        ...

    def rest(self) -> None:
        """Evaluation is over."""
        ...

    def state(self) -> dict[str, Any]:
        """What else a checkpoint must hold, as JSON: the loss scale."""
        ...

    def save(self, folder: Path) -> Callable[[], None]:
        """Copy weights and moments, and write them to `folder` in the background; call what it returns to wait for the files."""
        ...

    def load(self, folder: Path, state: Mapping[str, Any], updates: int) -> None:
        """Go on from a checkpoint of any topology. updates: steps that changed the weights."""
        ...

    def export(self) -> Mapping[str, Tensor]:
        """All weights in float32 under the model's names, on the first process; the others may get nothing."""
        ...


def make_optimizer(model: MoxinLM, config: PretrainConfig, kind: type[torch.optim.AdamW] = torch.optim.AdamW) -> torch.optim.AdamW:
    """AdamW, one fused kernel; weight decay on matrices only (norm scales have no direction to shrink)."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    betas = (config.beta1, config.beta2)
    return kind(groups, lr=config.learning_rate, betas=betas, eps=config.eps, fused=True)


def moments_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """AdamW's state of a parameter, made when there is none yet."""
    own = optimizer.state[parameter]
    if not own:
        own["step"] = torch.zeros((), device=parameter.device if parameter.is_cuda else "cpu")
        own["exp_avg"], own["exp_avg_sq"] = torch.zeros_like(parameter.detach()), torch.zeros_like(parameter.detach())
    return own


def noise_of(config: PretrainConfig, sequences: Tensor | None) -> Noise | None:
    """The dropout of these sequences."""
    return None if sequences is None else Noise(config.seed, sequences.tolist())


def make_engine(model: MoxinLM, config: PretrainConfig, world: World) -> Engine:
    """Spread `model` over the processes. It must not be used otherwise from then on."""
    if config.engine == "colossalai":
        from stages.pretrain.colossal import ColossalEngine  # its environment alone has Colossal-AI

        return ColossalEngine(model, config, world)
    from stages.pretrain.fsdp import TorchEngine

    return TorchEngine(model, config, world)
