"""Threads that accumulate the gradients of one batch: each takes some of its sequences, and runs whole forward and
backward passes on one core.

OpenMP shares every operation instead, and a step of a small model has a thousand of them. Threads that sleep between
two operations are woken too late, and threads that spin starve whatever else the cores have to do
(benchmarks/README.md). Here they meet once a step, and no core waits for another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Piece = TypeVar("Piece")


class GradientThreads:
    """A number of threads, one core each."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, "gradients", torch.set_num_threads, (1,))

    def gradients(
        self, loss_of: Callable[[Piece], Tensor], parameters: Sequence[Tensor], pieces: Sequence[Piece], scale: float
    ) -> Tensor:
        """Add the gradients of scale x the loss of each piece to the parameters' `grad`; returns the sum of the losses.

        They are added in the order of the pieces, so that a number of threads always gives the same bytes.
        """

        def work(piece: Piece) -> tuple[Tensor, tuple[Tensor, ...]]:
            loss = loss_of(piece)
            return loss.detach(), torch.autograd.grad(loss * scale, parameters)

        total = torch.zeros(())
        for start in range(0, len(pieces), self.threads):  # no more than these hold their gradients at one time
            for loss, gradients in self._pool.map(work, pieces[start : start + self.threads]):
                total += loss
                self._add(parameters, gradients)
                del gradients  # else the last ones live on beside those of the next pieces
        return total

    def total(self, loss_of: Callable[[Piece], Tensor], pieces: Sequence[Piece]) -> Tensor:
        """The sum of the losses of the pieces, without gradients."""

        def work(piece: Piece) -> Tensor:
            with torch.no_grad():  # what is switched off in one thread is not in another
                return loss_of(piece)

        return torch.stack(list(self._pool.map(work, pieces))).sum()

    @staticmethod
    def _add(parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        if parameters[0].grad is None:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.contiguous()  # it may be an expanded number
        else:
            torch._foreach_add_([p.grad for p in parameters], list(gradients))  # type: ignore[arg-type]
