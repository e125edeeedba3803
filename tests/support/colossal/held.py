"""Counts the bytes of weights, gradients, and masters and moments that a process of Colossal-AI has at an update."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from stages.lib.training.backends.colossalai import ColossalBackend
from stages.lib.training.optimizer import MOMENTS

HELD: dict[str, int] = {}
"""Of this process, at its last update."""
CHUNKS = ("chunk_temp", "cuda_global_chunk", "cuda_shard", "cpu_shard")
"""Where a chunk of Gemini may lie, whole or this process's part of it."""


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


def _in_chunks(chunks: Iterable[Any]) -> int:
    """Bytes that chunks of Gemini lie in; of a chunk that is set free, none are left."""
    places = [place for chunk in chunks for name in CHUNKS if (place := getattr(chunk, name)) is not None]
    return sum({place.untyped_storage().data_ptr(): place.untyped_storage().nbytes() for place in places}.values())


def _count_chunks(backend: Any) -> None:
    optimizer = backend._optimizer
    chunks = list(optimizer.chunk16_set)
    moments = [state[name] for state in optimizer.optim.state.values() for name in MOMENTS if state]
    HELD["weights"] = _in_chunks(chunks)
    HELD["masters, moments"] = _in_chunks([chunk.paired_chunk for chunk in chunks]) + _bytes(moments)


def install() -> None:
    """Count at every step from now on."""
    step = ColossalBackend.step

    def counted(self: Any, *arguments: Any) -> Any:
        optimizer, weights = self._optimizer, list(self._shards._parameters.values())
        update, chunked = optimizer.step, hasattr(optimizer, "chunk16_set")

        def counts(*given: Any, **named: Any) -> Any:
            if chunked:
                own = (chunk.grad_chunk for chunk in optimizer.chunk16_set)
                HELD["gradients"] = _in_chunks(chunk for chunk in own if chunk is not None)
            else:
                HELD["gradients"] = _bytes(list(_gradients(optimizer, weights)))
            return update(*given, **named)

        optimizer.step = counts
        try:
            done = step(self, *arguments)
        finally:
            optimizer.step = update
        if chunked:
            _count_chunks(self)
        else:
            moments = [state[name] for state in optimizer.optim.state.values() for name in MOMENTS]
            HELD["weights"] = _bytes(weights)
            HELD["masters, moments"] = _bytes([*self._shards._masters.values(), *moments], weights)
        return done

    ColossalBackend.step = counted  # pyright: ignore[reportAttributeAccessIssue]
