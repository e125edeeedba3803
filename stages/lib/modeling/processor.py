"""Prepare this process for training on a CPU: threads, and memory that the allocator keeps."""

from __future__ import annotations

import contextlib
import ctypes

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt (malloc.h)."""
KEPT_BYTES = 1 << 30
"""Blocks up to this size come from the heap, and as much free memory stays in it."""


def prepare(threads: int) -> None:
    """Set PyTorch's threads, and let glibc keep what is freed.

    By default it returns every large block to the kernel, and each step faults the same pages in again: the product
    with a vocabulary of 8,192 then runs at 107 instead of 162 GFLOP/s on one core. On another C library nothing
    happens.

    Start the process with OMP_WAIT_POLICY=PASSIVE: OpenMP's waiting threads otherwise spin, and starve what else the
    cores have to do (benchmarks/README.md). Asleep they are slow in small steps, which is why
    `stages/lib/training/gradient_threads.py` shares a batch instead.
    """
    torch.set_num_threads(threads)
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
