"""How a training is spread over processes: one vocabulary for engines `torch` and `colossalai`. Light: a stage's
configuration has it.

What the words mean to each engine, and which sizes go together, is in docs/parallelism.md; `validation` refuses the
others.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from stages.core.shrinking import Rehearsal, Shrinks

ZERO = {"torch": 3, "colossalai": 1}
"""Stage of ZeRO by engine, where none is set. torch: FSDP2's own way. colossalai: the paper's, less the exchange of all
gradients after each micro-batch.
"""


class ParallelSizes(BaseModel):
    """Processes = data x tensor x pipeline x context. No size changes the result, beside rounding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: int | None = Field(
        default=None,
        gt=0,
        description="parts of a batch; unset: what tensor, pipeline and context leave of the processes. Set, it has to",
    )
    tensor: Annotated[int, Shrinks(wiring=2)] = Field(
        default=1, gt=0, description="processes that share each matrix, and the tokens between blocks"
    )
    pipeline: Annotated[int, Shrinks(wiring=2)] = Field(
        default=1,
        gt=0,
        description="groups of processes that have some of the blocks each (1F1B over micro_batch_size); colossalai's",
    )
    context: int = Field(
        default=1, gt=0, description="processes that share a sequence's tokens in attention: 1, no engine here has more"
    )
    zero: Literal[0, 1, 2, 3] | None = Field(
        default=None,
        description=(
            "what the parts of a batch share. 0: nothing (DDP; colossalai alone); 1: moments and float32 weights,"
            " gradients add up whole and are exchanged once a step; 2: gradients too, exchanged after each micro-batch;"
            " 3: weights too, gathered block by block (torch: FSDP2; colossalai: Gemini, on GPUs). Unset: torch 3,"
            " colossalai 1"
        ),
    )
    offload: bool = Field(
        default=False,
        description="ZeRO's float32 weights and moments lie in main memory (colossalai on GPUs; upstream: zero2_cpu)",
    )

    def rehearsed(self, values: dict[str, Any], rehearsal: Rehearsal) -> dict[str, Any]:
        """The parts of a batch follow from the processes that there are."""
        return values | {"data": None}

    @property
    def model_parallel_size(self) -> int:
        """Processes that work on one part of a batch."""
        return self.tensor * self.pipeline * self.context

    def zero_of(self, engine: str) -> int:
        """The stage of ZeRO, set or not."""
        return ZERO.get(engine, ZERO["torch"]) if self.zero is None else self.zero  # others stand on torch's

    @property
    def plugin(self) -> Literal["hybrid", "low_level_zero", "gemini"]:
        """What Colossal-AI's Booster needs for these sizes."""
        zero = self.zero_of("colossalai")
        if zero == 3:
            return "gemini"
        return "hybrid" if zero == 0 or self.model_parallel_size > 1 else "low_level_zero"
