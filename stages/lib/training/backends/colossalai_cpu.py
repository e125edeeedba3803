"""Colossal-AI 0.5.0 on processors: an accelerator for gloo, and two places where it asks for a backend or for CUDA by
name.

Its CpuAccelerator raises wherever CUDA has a notion that a processor has not (devices to choose, streams, memory
statistics). `colossalai.accelerator.set_accelerator` is public; the two functions that are replaced are not.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import colossalai.pipeline.p2p as p2p  # pyright: ignore[reportMissingImports]
import torch
import torch.distributed as dist
from colossalai.accelerator import CpuAccelerator, set_accelerator  # pyright: ignore[reportMissingImports]
from colossalai.zero.gemini.chunk import ChunkManager  # pyright: ignore[reportMissingImports]
from colossalai.zero.low_level.low_level_optim import LowLevelZeroOptimizer  # pyright: ignore[reportMissingImports]

CPU = torch.device("cpu")


class _Stream:
    """A processor has one stream, in which everything is done in order: there is nothing to wait for."""

    device = CPU

    def wait_stream(self, stream: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


class GlooAccelerator(CpuAccelerator):
    """A processor as the one device of its process."""

    def synchronize(self, device: Any = None) -> None:
        pass

    def current_device(self) -> torch.device:
        return CPU

    def set_device(self, device: Any = None) -> None:
        pass

    def device_count(self) -> int:
        return 1

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def empty_cache(self) -> None:
        pass

    def Stream(self, *arguments: Any, **options: Any) -> _Stream:
        return _Stream()

    def current_stream(self, device: Any = None) -> _Stream:
        return _Stream()

    def stream(self, stream: Any) -> Any:
        return contextlib.nullcontext()


def install() -> None:
    """Make this process's Colossal-AI work without GPUs."""
    set_accelerator(GlooAccelerator())
    LowLevelZeroOptimizer._sanity_checks = lambda self: None  # asserts that the accelerator's name is "cuda" or "npu"


def repair_pipeline() -> None:
    """With or without GPUs: to know whether messages go by NCCL, it asks for names that only PyTorch's build for Ascend
    has.
    """
    p2p._check_for_nccl_hccl_backend = lambda group: "nccl" in dist.get_backend_config(group)


def repair_accumulation() -> None:
    """Gemini multiplies the gradients so far by the number of processes, as each will divide them again. Those of a
    chunk that every
    process has whole are summed over the processes besides, and come out that many times too large: they are made
    smaller first.
    """
    original = getattr(
        ChunkManager.rearrange_accumulated_grad_chunk, "__wrapped__", ChunkManager.rearrange_accumulated_grad_chunk
    )

    @functools.wraps(original)
    def rearrange(self: Any, chunk: Any) -> Any:
        if chunk.grad_chunk.is_gathered:
            chunk.grad_chunk.cuda_global_chunk.div_(chunk.pg_size)
        return original(self, chunk)

    ChunkManager.rearrange_accumulated_grad_chunk = rearrange
