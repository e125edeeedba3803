"""What an engine cannot honour, found when the configuration is read: before anything runs. Light: `spec.py` files
build on it.
"""

from __future__ import annotations

from typing import Any

from stages.core.errors import ConfigError


def require(config: Any, reasons: dict[str, tuple[Any, str]]) -> None:
    """Raise ValueError unless each setting has the one value that the engine can work with. reasons: `{setting: (value,
    why)}`.
    """
    for name, (value, why) in reasons.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"engine '{config.engine}' {why}: set {name} = {_shown(value)} (it is {_shown(getattr(config, name))}),"
                " or another engine"
            )


def _shown(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)


def require_batches(config: Any) -> None:
    """Raise ValueError when a batch is no whole number of micro-batches."""
    if config.global_batch_size % config.micro_batch_size:
        raise ValueError(
            f"global_batch_size = {config.global_batch_size} is no multiple of micro_batch_size ="
            f" {config.micro_batch_size}"
        )


def require_shared_batches(node: str, config: Any, ranks: int) -> None:
    """Raise ConfigError when a batch cannot be shared out evenly to `ranks` processes."""
    if config.global_batch_size % (config.micro_batch_size * ranks):
        raise ConfigError(
            f"{node}.global_batch_size = {config.global_batch_size} is no multiple of micro_batch_size x GPUs ="
            f" {config.micro_batch_size} x {ranks}: change it, {node}.micro_batch_size or resources.{node}.gpus"
        )


OPEN_INSTRUCT: dict[str, tuple[Any, str]] = {
    "beta1": (0.9, "always uses PyTorch's AdamW defaults"),
    "beta2": (0.999, "always uses PyTorch's AdamW defaults"),
    "eps": (1e-8, "always uses PyTorch's AdamW defaults"),
    "precision": ("bf16", "loads and trains in bf16"),
    "device": ("cuda", "needs GPUs (finetune.py asks CUDA for its memory)"),
}
"""open-instruct d208aa371976: neither finetune.py nor dpo_tune_cache.py has an option for these."""
VERL: dict[str, tuple[Any, str]] = {
    "eps": (1e-8, "keeps PyTorch's default"),
    "precision": ("bf16", "samples with vLLM in bf16"),
    "device": ("cuda", "needs GPUs here (vLLM, flash-attn)"),
    "advantage": ("group", "is used here for GRPO"),
}
"""verl 0.9.1 as stages/lib/engines/verl.py drives it."""
AREAL: dict[str, tuple[Any, str]] = {
    "precision": ("bf16", "samples with SGLang in bf16"),
    "device": ("cuda", "needs GPUs here (SGLang)"),
    "advantage": ("batch", "is used here for PPO without a critic"),
    "entropy_coef": (0.0, "has no entropy bonus"),
}
"""AReaL 1.0.4 as stages/lib/engines/areal.py drives it."""


def require_reinforcement(config: Any) -> None:
    """Raise ValueError for what the engine of a GrpoConfig cannot honour."""
    if dropout := getattr(config, "attention_dropout", 0.0):
        raise ValueError(
            f"attention_dropout = {dropout}: reinforcement takes the ratio of a response's probability now to that when"
            " it was written; dropout in one of the two makes it noise where it is 1. Set attention_dropout = 0.0"
        )
    if config.engine == "trl":
        return
    require(config, {"verl": VERL, "areal": AREAL}[config.engine])
    if config.grad_clip <= 0:
        raise ValueError(f"engine '{config.engine}' always clips gradients: set grad_clip above 0, or another engine")
    if config.max_tokens_per_gpu < config.longest:
        raise ValueError(
            f"max_tokens_per_gpu = {config.max_tokens_per_gpu} is less than the longest prompt and response,"
            f" {config.longest} tokens: raise it, or shorten max_prompt_length or context_phases"
        )


def require_shared_responses(node: str, config: Any, ranks: int) -> None:
    """Raise ConfigError when the engine of a GrpoConfig cannot share a batch of responses out evenly to `ranks`
    GPUs.
    """
    if config.engine == "areal" and ranks % 2:
        raise ConfigError(
            f"resources.{node}.gpus = {ranks}: engine 'areal' writes on one half of them and trains on the other: give"
            " it an even number"
        )
    for number, stage in enumerate(config.context_phases):
        if (responses := config.prompts_per_step * stage.num_generations) % ranks:
            raise ConfigError(
                f"{node}.context_phases.{number}: {responses} responses are no multiple of"
                f" resources.{node}.gpus = {ranks}"
            )
