"""Settings of engine `colossalai` alone. Light: a stage's configuration has them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ColossalSettings(BaseModel):
    """How engine 'colossalai' spreads the model: a plugin of its Booster, and what that can do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plugin: Literal["hybrid", "low_level_zero", "gemini"] = Field(
        default="low_level_zero",
        description=(
            "hybrid: tensor and pipeline parallel, with data parallel or ZeRO around; low_level_zero: ZeRO alone"
            " (upstream's README: zero2_cpu); gemini: weights in chunks that come and go (upstream's default; needs"
            " GPUs)"
        ),
    )
    zero_stage: Literal[0, 1, 2] = Field(
        default=2,
        description=(
            "0: every process keeps all; 1: moments and float32 weights are cut; 2: gradients too (upstream: zero2_cpu)"
        ),
    )
    pipeline: int = Field(
        default=1,
        gt=0,
        description="hybrid: groups of processes that have a part of the blocks each (1F1B over micro_batch_size)",
    )
    cpu_offload: bool = Field(
        default=False,
        description="ZeRO's float32 weights and moments lie in CPU memory (upstream: zero2_cpu; needs GPUs)",
    )
