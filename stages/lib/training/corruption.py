"""Whether something else than an update has changed the weights: a bit of memory, a transfer, a wild write.

Two looks every so many steps. *Held alike*: weights that several processes hold, by the layout, must be the same bit by
bit. *At rest*: weights and moments are read and not written between two updates, so what a process holds after one must
be what it holds before the next. Neither sees an arithmetic unit that computes wrongly the same way for all.
"""

from __future__ import annotations

import hashlib
import socket
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from stages.core.context import Context
from stages.core.errors import InfraError
from stages.lib.training.backends.base import Backend
from stages.lib.training.parallel_dims import ParallelDims

CHUNK = 1 << 24
"""Elements that are summed at a time: 128 MiB of them as whole numbers."""
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def digest(tensors: Iterable[Tensor]) -> int:
    """Of all their bits, computed where they lie: 64 bits, signed.

    Words times odd numbers that differ by place, added modulo 2**64: one bit that turns always changes that.
    """
    sums: list[Tensor] = []
    for tensor in tensors:
        words = tensor.contiguous().view(-1).view(_WORDS[tensor.element_size()])
        for start in range(0, len(words), CHUNK):
            part = words[start : start + CHUNK].to(torch.int64)
            odd = torch.arange(2 * start + 1, 2 * (start + len(part)), 2, device=part.device)
            sums.append((part * odd).sum())
    data = torch.stack([each.cpu() for each in sums]).numpy().tobytes() if sums else b""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


class CorruptionWatch:
    """Looks at the tensors of one training every so many steps. Every process calls it at the same places."""

    def __init__(self, ctx: Context[Any], backend: Backend, dims: ParallelDims, every: int) -> None:
        """every: steps between two looks; 0: none."""
        self._ctx, self._backend, self._dims, self._every = ctx, backend, dims, every
        self._rest: int | None = None

    def before_update(self, step: int) -> None:
        """Before step `step`, counted from 1, changes anything. Raises InfraError."""
        if self._rest is not None:
            before, self._rest = self._rest, None
            now = digest(self._backend.held().resting)
            changed = [rank for rank, (same,) in enumerate(self._dims.gather_numbers(int(before == now))) if not same]
            if changed:
                self._end(step, changed, "weights or moments changed between two updates")
        if self._every and step % self._every == 0:
            self.compare(step)

    def after_update(self, step: int) -> None:
        """After step `step`."""
        if self._every and step % self._every == 0:
            self._rest = digest(self._backend.held().resting)

    def compare(self, step: int) -> None:
        """Hold against each other what several processes hold. Raises InfraError."""
        if not self._every or self._dims.world_size == 1:
            return
        held = self._backend.held()
        holders: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for rank, (first, value) in enumerate(self._dims.gather_numbers(held.first, digest(held.shared))):
            holders[first].append((value, rank))
        odd: list[int] = []
        for rows in holders.values():
            (most, count), *others = Counter(value for value, _ in rows).most_common()
            alike = bool(others) and others[0][1] == count  # as many as that differ: nobody knows who is right
            odd += [rank for value, rank in rows if others and (alike or value != most)]
        if odd:
            self._end(step, sorted(odd), "weights that are the same by layout differ")

    def forget(self) -> None:
        """The weights were loaded anew."""
        self._rest = None

    def _end(self, step: int, ranks: list[int], what: str) -> None:
        hosts = [_text(row) for row in self._dims.gather_numbers(*_numbers(socket.gethostname()))]
        self._ctx.metric(step, corrupted=float(len(ranks)))
        named = ", ".join(f"{rank} on {hosts[rank]}" for rank in ranks[:8])
        raise InfraError(
            f"{self._ctx.node}: {what} at step {step}, of process {named}: memory, a GPU or a link is bad; the next"
            " attempt goes on from the last checkpoint, which was looked at; have the machine tested"
        )


def _numbers(text: str) -> list[int]:
    """A short text as eight numbers, for an exchange that takes nothing else."""
    data = text.encode()[:64].ljust(64)
    return [int.from_bytes(data[at : at + 8], "little", signed=True) for at in range(0, 64, 8)]


def _text(numbers: Sequence[int]) -> str:
    return b"".join(number.to_bytes(8, "little", signed=True) for number in numbers).decode(errors="replace").strip()
