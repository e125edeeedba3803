"""The learning rate of each optimizer step: linear warmup, then a cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class WarmupCosine:
    """A function of the step's number alone, so that a resumed run repeats an unbroken one."""

    peak: float
    steps: int
    """Optimizer steps of the run."""
    warmup_steps: int
    min_ratio: float = 0.0
    """Where the cosine ends, as a share of the peak."""
    ends_at_last_step: bool = True
    """Whether the last step has the smallest rate; else the step after it would have (transformers' schedule)."""

    def __call__(self, step: int) -> float:
        """Learning rate of step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        decay_steps = self.steps - self.warmup_steps - (1 if self.ends_at_last_step else 0)
        done = min((step - self.warmup_steps) / max(1, decay_steps), 1.0)
        return self.peak * (self.min_ratio + (1 - self.min_ratio) * 0.5 * (1 + math.cos(math.pi * done)))
