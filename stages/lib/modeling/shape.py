"""The shape of a Moxin model: every architectural number, light to import."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stages.core.shrinking import Rehearsal, Shrinks


class ModelShape(BaseModel):
    """Architecture without vocabulary (that comes from the tokenizer). Defaults: the paper's 7B (3.1, Table 1)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: Annotated[int, Shrinks(wiring=2)] = Field(
        default=36, gt=0, description="decoder blocks (paper 3.1: 32 extended to 36)"
    )
    hidden: Annotated[int, Shrinks(wiring=64)] = Field(default=4096, gt=0, description="width (Table 1: dim)")
    intermediate: Annotated[int, Shrinks(wiring=128)] = Field(
        default=14336, gt=0, description="width inside the SwiGLU (Table 1: hidden_dim)"
    )
    heads: int = Field(default=32, gt=0, description="query heads (Table 1)")
    kv_heads: Annotated[int, Shrinks(wiring=2)] = Field(
        default=8, gt=0, description="key-value heads, grouped-query attention (Table 1)"
    )
    head_dim: Annotated[int, Shrinks(wiring=16)] = Field(default=128, gt=0, description="width of a head (Table 1)")
    window: Annotated[int | None, Shrinks(wiring=256, unset=False)] = Field(
        default=4096, gt=0, description="sliding-window attention: a token sees this many, itself included (3.1)"
    )
    max_positions: Annotated[int, Shrinks(wiring=1024)] = Field(
        default=32768, gt=0, description="longest context (3.1: 32K)"
    )
    rope_theta: float = Field(default=10000.0, gt=0, description="base of the rotary embedding (Mistral v0.1)")
    norm_eps: float = Field(default=1e-5, gt=0, description="of RMSNorm (Mistral; transformers 5 has another default)")

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelShape:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} key-value heads evenly")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd: the rotary embedding pairs its halves")
        return self

    def rehearsed(self, values: dict[str, Any], rehearsal: Rehearsal) -> dict[str, Any]:
        """Fewer heads that share keys and values as before, if with a smaller group."""
        if rehearsal.level == "shape":
            return values
        return values | {"heads": values["kv_heads"] * min(2, self.heads // self.kv_heads)}

    def parameters(self, vocab_size: int) -> int:
        """Number of parameters with untied embeddings; 8,114,180,096 for the defaults at 32,000 (docs/recipe.md)."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        block = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return 2 * vocab_size * self.hidden + self.layers * block + self.hidden

    def flops_per_token(self, vocab_size: int, context: int) -> float:
        """Training FLOPs for one token: 6 for each parameter that multiplies it, and 12 x layers x width x keys seen.

        The embedding look-up multiplies nothing. A causal token sees half the context on average, or the window.
        """
        matrices = self.parameters(vocab_size) - vocab_size * self.hidden
        seen = min(context / 2, self.window or context)
        return 6.0 * matrices + 12.0 * self.layers * self.heads * self.head_dim * seen
