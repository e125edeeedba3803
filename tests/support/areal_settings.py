"""A recipe and a small model for engine `areal`."""

from __future__ import annotations

from typing import Any

from tests.support import tuning

AREAL: dict[str, Any] = {
    "engine": "areal",
    "device": "cuda",
    "advantage": "batch",
    "entropy_coef": 0.0,
    "kl_coef": 0.01,
    "reward_right": 5.0,
    "reward_wrong": -5.0,
}


RECIPE: dict[str, Any] = {  # profile 7b's
    **AREAL,
    "prompts_per_step": 1024,
    "num_mini_batches": 4,
    "max_prompt_length": 2048,
    "recompute": "full",
    "checkpoint_every": 20,
    "context_phases": [{"steps": 400, "max_response_length": 16384, "num_generations": 16}],
}


SMALL: dict[str, Any] = {**AREAL, **tuning.TWO_PHASES}
