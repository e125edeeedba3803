"""Which combinations of sizes, precision and processes a plan takes: the whole grid against the rules of
docs/parallelism.md, written here a second time. That those which are taken train the reference's curve:
tests/training/stages/pretrain.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import product
from typing import Any

import pytest
from pydantic import ValidationError

from stages.core.errors import ConfigError
from stages.core.resources import Resources
from stages.lib.modeling.shape import ModelShape
from stages.lib.training.parallel_sizes import ParallelSizes
from stages.pretrain.spec import Pretrain, PretrainConfig
from stages.vlm.spec import TrainVlm, VlmConfig

BATCH, LENGTH, LAYERS = 4, 16, 2
SHAPE = ModelShape(
    layers=LAYERS, hidden=32, intermediate=64, heads=4, kv_heads=2, head_dim=8, window=12, max_positions=64
)
INDIFFERENT: list[dict[str, Any]] = [
    {},
    {"recompute": "full", "dropout": 0.0},
    {"recompute": "selective", "document_mask": False},
]
"""What goes with all sizes."""


def refused(
    config: type[Any], stage: type[Any], values: dict[str, Any], sizes: dict[str, Any], resources: Resources
) -> str:
    """Why a plan does not take a combination; "": it does."""
    try:
        stage.check_resources("node", config(**values, parallel=ParallelSizes(**sizes)), resources)
    except (ValidationError, ConfigError) as error:
        return str(error)
    return ""


def runs(engine: str, half: bool, compiled: bool, micro: int, gpu: bool, processes: int, sizes: dict[str, Any]) -> bool:
    """The rules."""
    tensor, pipeline = sizes["tensor"], sizes["pipeline"]
    zero = sizes["zero"] if sizes["zero"] is not None else {"torch": 3, "colossalai": 1}[engine]
    if sizes["context"] > 1 or tensor > SHAPE.kv_heads or (half and not gpu):
        return False
    if engine == "torch":
        possible = pipeline == 1 and zero > 0 and not (compiled and tensor > 1)
    else:
        alone = tensor == pipeline == 1
        by_stage = {0: True, 1: alone or half, 2: pipeline == 1 and (alone or half), 3: alone and half and gpu}
        possible = not compiled and by_stage[zero]
    if not possible or processes % (tensor * pipeline):
        return False
    windows = BATCH * tensor * pipeline // processes
    return pipeline == 1 or (windows % micro == 0 and windows // micro >= pipeline)


@pytest.mark.parametrize("engine", ["torch", "colossalai"])
def test_every_combination_runs_or_is_refused_with_its_reason(engine: str) -> None:
    told: Counter[bool] = Counter()
    grid = product(
        ("fp32", "bf16", "fp16"),
        (False, True),
        (1, 2),
        (0, 1),
        (1, 2, 4),
        (1, 2, 4),
        (1, 2),
        (None, 0, 1, 2, 3),
        (1, 2),
    )
    for number, (precision, compiled, micro, gpu, processes, tensor, pipeline, zero, context) in enumerate(grid):
        sizes = {"tensor": tensor, "pipeline": pipeline, "zero": zero, "context": context}
        values = {
            "shape": SHAPE, "sequence_length": LENGTH, "tokens": BATCH * LENGTH * 12, "global_batch_size": BATCH,
            "warmup_steps": 1, "engine": engine, "precision": precision, "compile": compiled,
            "micro_batch_size": micro, "device": "cuda" if gpu else "cpu", **INDIFFERENT[number % 3],
        }  # fmt: skip
        resources = Resources(gpus=processes) if gpu else Resources(nproc_per_node=processes)
        reason = refused(PretrainConfig, Pretrain, values, sizes, resources)
        taken = runs(engine, precision != "fp32", compiled, micro, bool(gpu), processes, sizes)
        assert (reason == "") == taken, (values, sizes, reason)
        told[taken] += 1
        if reason:
            assert re.search(r"\b(set|choose|does not divide|cannot be shared|needs as many)\b", reason), reason
            assert re.search(r"parallel\.|compile|precision", reason), reason
    assert min(told.values()) > 100


def test_the_vision_language_stage_shares_the_batch_alone() -> None:
    for tensor, pipeline, context, zero in product((1, 2), (1, 2), (1, 2), (None, 0, 1, 2, 3)):
        sizes = {"tensor": tensor, "pipeline": pipeline, "context": context, "zero": zero}
        reason = refused(VlmConfig, TrainVlm, {}, sizes, Resources(gpus=4))
        assert (reason == "") == (tensor == pipeline == context == 1 and zero != 0), (sizes, reason)
    assert "half precision" in refused(VlmConfig, TrainVlm, {}, {}, Resources())


def test_parts_of_a_batch_that_are_named_must_be_there() -> None:
    values = {"shape": SHAPE, "sequence_length": LENGTH, "tokens": 10**4, "global_batch_size": 4, "warmup_steps": 1}
    values |= {"precision": "fp32"}
    four = Resources(nproc_per_node=4)
    assert refused(PretrainConfig, Pretrain, values, {"data": 2, "tensor": 2}, four) == ""
    assert refused(PretrainConfig, Pretrain, values, {"data": 4, "tensor": 2}, four) == (
        "node.parallel.data = 4, but 4 processes in groups of 2 make 2 parts: set 2, leave it out, or change the"
        " processes"
    )


@pytest.mark.parametrize(
    ("sizes", "plugin"),
    [
        ({}, "low_level_zero"),
        ({"zero": 2}, "low_level_zero"),
        ({"zero": 0}, "hybrid"),
        ({"tensor": 2}, "hybrid"),
        ({"pipeline": 2, "zero": 1}, "hybrid"),
        ({"zero": 3}, "gemini"),
    ],
)
def test_colossalais_plugin_follows_from_the_sizes(sizes: dict[str, Any], plugin: str) -> None:
    assert ParallelSizes(**sizes).plugin == plugin
