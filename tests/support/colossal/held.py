"""Counts the bytes of weights, gradients, and masters and moments that a process of Colossal-AI has at an update."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from stages.lib.training.backends.colossalai import ColossalBackend
from stages.lib.training.optimizer import MOMENTS

HELD: dict[str, int] = {}
"""Of this process, at its last update. Empty with Gemini, whose parameters lie in chunks."""


def _bytes(tensors: Iterable[Tensor], others: Iterable[Tensor] = ()) -> int:
    """Of tensors that do not lie in another's memory, nor in that of `others`."""
    known = {tensor.untyped_storage().data_ptr() for tensor in others}
    mine = {tensor.untyped_storage().data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}
    return sum(size for place, size in mine.items() if place not in known)


def _gradients(optimizer: Any, weights: Iterable[Tensor]) -> Iterator[Tensor]:
    yield from (weight.grad for weight in weights if weight.grad is not None)
    for store in getattr(optimizer, "pg_to_grad_store", {}).values():
        for group in store._grads_of_params.values():
            for pieces in group.values():  # each a view of a bucket that held several
                yield from (piece.clone() for piece in pieces)


def install() -> None:
    """Count at every step from now on."""
    step = ColossalBackend.step

    def counted(self: Any, *arguments: Any) -> Any:
        optimizer, weights = self._optimizer, list(self._shards._parameters.values())
        update = optimizer.step

        def counts(*given: Any, **named: Any) -> Any:
            gradients = list(_gradients(optimizer, weights))
            HELD["gradients"] = _bytes(gradients)
            return update(*given, **named)

        optimizer.step = counts
        try:
            return step(self, *arguments)
        finally:
            optimizer.step = update
            moments = [state[name] for state in optimizer.optim.state.values() for name in MOMENTS]
            HELD["weights"] = _bytes(weights)
            HELD["masters, moments"] = _bytes([*self._shards._masters.values(), *moments], weights)

    ColossalBackend.step = counted  # pyright: ignore[reportAttributeAccessIssue]
