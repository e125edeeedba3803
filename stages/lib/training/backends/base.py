"""What the trainer asks of a backend: a step, the loss of held-out windows, checkpoints, the trained weights.

`fsdp.TorchBackend` and `colossalai.ColossalBackend` are the two. They train on the same parts of the same batches, and
keep their checkpoints under the same names: float32 weights and moments, whatever the precision and the topology.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from stages.lib.modeling.weights import Weights
from stages.lib.training.checkpointer import Read
from stages.lib.training.optimizer import WEIGHT

INITIAL_SCALE = 2.0**16
"""Loss scale that fp16 begins with: at 2**32 (Colossal-AI's default) the first steps overflow."""


class Batch(Protocol):
    """What one forward pass is given. What else is in it is between the stage and its loss."""

    @property
    def predicted(self) -> int:
        """Tokens whose loss counts."""
        ...

    @property
    def tokens(self) -> int:
        """All of its tokens, without padding."""
        ...


@dataclass(frozen=True)
class WindowBatch:
    """Windows of T tokens. ids [B, T]; documents [B, T]: which document a token belongs to; sequences [B]: numbers in
    the run.
    """

    ids: Tensor
    documents: Tensor | None = None
    sequences: Tensor | None = None
    predicted: int = 0

    @property
    def tokens(self) -> int:
        """B x T."""
        return self.ids.numel()

    def split(self, size: int) -> list[WindowBatch]:
        """Cut into parts of `size` windows, and a smaller last one."""
        parts = []
        for start in range(0, len(self.ids), size):
            ids, documents, sequences = (
                x if x is None else x[start : start + size] for x in (self.ids, self.documents, self.sequences)
            )
            assert ids is not None
            parts.append(WindowBatch(ids, documents, sequences))
        return parts


@dataclass(frozen=True)
class Trainable:
    """A model, as `fsdp.TorchBackend` is given it."""

    module: nn.Module
    """Built on `meta`: it gets memory and weights once it is cut over the processes."""
    weights: Weights
    blocks: Sequence[nn.Module]
    """Its parts whose weights are gathered one after the other."""
    loss_sum: Callable[[Any], Tensor]
    """Summed loss of a batch's predicted tokens, a scalar; calls the module, or one of `methods`."""
    methods: Sequence[str] = ()
    """Methods of the module beside `forward` that run its weights."""


@dataclass(frozen=True)
class Update:
    """What a step did. loss: summed over the tokens that this process saw, so that the sum over all processes is the
    batch's.
    """

    loss: float
    grad_norm: float
    """Of the whole gradient, before clipping."""
    overflow: bool = False
    """fp16: some gradient was too large for it, so nothing was updated, and the next step has a smaller scale."""


@dataclass(frozen=True)
class HeldTensors:
    """The tensors of a process, as they lie there between two updates."""

    resting: Sequence[Tensor]
    """What nothing but an update changes: weights and moments."""
    shared: Sequence[Tensor] = ()
    """Weights that other processes hold too, bit by bit."""
    first: int = 0
    """The lowest rank of those that hold the same."""


Accepts = Callable[[Update], bool]
"""Whether a step may change the weights. Every process calls it once a step, when loss and norm are known."""


class Backend(Protocol):
    """A model and its optimizer, spread over the processes."""

    def step(self, batches: Sequence[Any], learning_rate: float, predicted: float, accepts: Accepts) -> Update:
        """One optimizer step on this process's micro-batches, without an update where it is not accepted. predicted:
        tokens of the global batch that count.
        """
        ...

    def held(self) -> HeldTensors:
        """For a look at whether something else than an update has changed them."""
        ...

    def evaluate(self, batch: Any) -> float:
        """Summed loss, as in `Update`. Every process has to call it as often."""
        ...

    def finish_evaluation(self) -> None:
        """Back to training: to be called after the last `evaluate`, and when one failed."""
        ...

    def extra_state(self) -> dict[str, Any]:
        """What a checkpoint must hold beside tensors, as JSON: the loss scale."""
        ...

    def save(self, folder: Path) -> Callable[[], None]:
        """Copy weights and moments, and write them to `folder` in the background; call what it returns to wait for the
        files.
        """
        ...

    def load(self, read: Read, state: Mapping[str, Any], updates: int) -> None:
        """Go on from a checkpoint of any topology. read: fills tensors from it. updates: steps that changed the
        weights.
        """
        ...

    def load_moments(self, read: Read, updates: int) -> None:
        """Begin with the moments that another training ended with. updates: steps that they come from."""
        ...

    def export(self, name: str, writer: int, kept: str = WEIGHT) -> Tensor | None:
        """One weight by the model's name, or a moment of it, whole and float32, on the process `writer`; None on the
        others. Every process has to call it, for the same ones in the same order (`stages.lib.training.export`).

        kept: WEIGHT, or one of `optimizer.MOMENTS`.
        """
        ...
