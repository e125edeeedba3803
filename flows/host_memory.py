"""Main memory of a machine that trains on GPUs, part by part: sums by what the code does, never measured."""

from __future__ import annotations

from typing import Any

from stages.core.resources import Resources
from stages.lib.modeling.memory import FULL, HALF

PROCESS, CPU_PROCESS = 3 * 2**30, 0.6 * 2**30
"""Bytes of a process that has PyTorch loaded, with CUDA and without (declared)."""

WEIGHT = 0.02
"""The largest weight as a share of all (declared; at 7b the embedding has 0.016)."""


def needed(stage: str, config: Any, resources: Resources, count: int) -> dict[str, float]:
    """Bytes of a GPU machine's main memory when it holds the most: as it begins, or as it saves or ends."""
    ranks, share = resources.ranks, 1 / resources.nodes
    engine = getattr(config, "engine", "torch")
    processes = {"processes": float(PROCESS * ranks)}
    saved = {"copy for a checkpoint": 3 * FULL * count * share}  # stages/lib/training/checkpointer.py
    if stage in ("pretrain", "vlm"):
        gemini = engine == "colossalai" and config.parallel.plugin == "gemini"  # its chunks are cut from the whole
        begins = (
            {"whole model in each process": float(FULL * count * ranks)}
            if gemini
            else {"one weight in each process": FULL * WEIGHT * count * ranks}  # read, drawn or written
        )
        ends = saved
        if config.parallel.offload:
            ends["offloaded masters, moments"] = 12 * count * share
    elif engine == "trl":
        begins, ends = {"parent and child": float(2 * FULL * count)}, {}
    else:  # each of an engine's processes reads the weights by itself; the parent was converted before
        begins = {"weights in each process": float(HALF * count * ranks), "parent": float(FULL * count)}
        ends = {"parent": float(FULL * count), **saved}
        if engine == "verl":
            begins["reference"] = ends["reference"] = float(FULL * count)
    return processes | max(begins, ends, key=lambda parts: sum(parts.values()))
