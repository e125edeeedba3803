"""What a training begins with, to come back to where no checkpoint leads.

A training that has trouble before its first checkpoint, or before the place that the first one leads back from, begins
anew: its weights are made or read again, part by part, as when it began, into the backend that has trained since.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from stages.lib.modeling.weights import Weights, held_part
from stages.lib.training.backends.base import Backend
from stages.lib.training.carried_moments import CarriedMoments
from stages.lib.training.optimizer import WEIGHT, stored_name
from stages.lib.training.stored_tensors import Part


class FirstState:
    """First weights, and moments: zeros, or those of the phase before."""

    def __init__(
        self, weights: Weights, shapes: Mapping[str, Sequence[int]], carried: CarriedMoments | None = None
    ) -> None:
        """weights: that the backend has begun with. shapes: of all parameters by name, whole. carried: moments to begin
        with.
        """
        self._weights, self._carried = weights, carried
        self._parameters = {stored_name(name, WEIGHT): (name, shape) for name, shape in shapes.items()}

    @property
    def updates(self) -> int:
        """Steps that the moments come from."""
        return self._carried.updates if self._carried is not None else 0

    def carry(self, backend: Backend) -> None:
        """Give a backend that has made no step the moments of the phase before. Raises InputError where they are of
        another model.
        """
        if self._carried is not None:
            self._carried.load(backend)

    @torch.no_grad()
    def read(self, batches: Iterable[Mapping[str, Tensor | Part]]) -> None:
        """Fill tensors by their names in a checkpoint (`checkpointer.Read`): weights as they were first, moments with
        zeros.
        """
        for targets in batches:
            for name, target in targets.items():
                self._fill(name, target)

    def _fill(self, name: str, target: Tensor | Part) -> None:
        if isinstance(target, Part):
            held = target.target
            part = tuple(slice(at, at + length) for at, length in zip(target.offsets, held.shape, strict=True))
        else:
            held, part = target.to_local() if isinstance(target, DTensor) else target, held_part(target)
        if name in self._parameters:
            held.copy_(self._weights(*self._parameters[name], part))
        else:
            held.zero_()
