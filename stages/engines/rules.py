"""What an engine cannot honour, found when the configuration is read: before anything runs. Light: `spec.py` files build on it."""

from __future__ import annotations

from typing import Any


def require(config: Any, reasons: dict[str, tuple[Any, str]]) -> None:
    """Raise ValueError unless each setting has the one value that the engine can work with. reasons: `{setting: (value, why)}`."""
    for name, (value, why) in reasons.items():
        if getattr(config, name) != value:
            raise ValueError(f"engine '{config.engine}' {why}: set {name} = {_shown(value)} (it is {_shown(getattr(config, name))}), or another engine")


def _shown(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)


def require_batches(config: Any) -> None:
    """Raise ValueError when a batch cannot be shared out evenly."""
    each = config.micro_batch * config.devices
    if config.batch_size % each:
        raise ValueError(f"batch_size = {config.batch_size} is no multiple of micro_batch x devices = {config.micro_batch} x {config.devices}")


TRL: dict[str, tuple[Any, str]] = {"devices": (1, "trains on one device")}
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
"""verl 0.9.1 as stages/engines/verl.py drives it."""
AREAL: dict[str, tuple[Any, str]] = {
    "precision": ("bf16", "samples with SGLang in bf16"),
    "device": ("cuda", "needs GPUs here (SGLang)"),
    "advantage": ("batch", "is used here for PPO without a critic"),
    "entropy": (0.0, "has no entropy bonus"),
}
"""AReaL 1.0.4 as stages/engines/areal.py drives it."""


def require_reinforcement(config: Any) -> None:
    """Raise ValueError for what the engine of a GrpoConfig cannot honour."""
    require(config, {"trl": TRL, "verl": VERL, "areal": AREAL}[config.engine])
    if config.engine == "trl":
        return
    if config.grad_clip <= 0:
        raise ValueError(f"engine '{config.engine}' always clips gradients: set grad_clip above 0, or another engine")
    if config.tokens_per_device < config.longest:
        raise ValueError(
            f"tokens_per_device = {config.tokens_per_device} is less than the longest prompt and response, {config.longest} tokens: "
            "raise it, or shorten max_prompt or stages"
        )
    if config.engine == "areal" and config.devices % 2:
        raise ValueError(f"devices = {config.devices}: engine 'areal' writes on one half of them and trains on the other: give it an even number")
    for number, stage in enumerate(config.stages):
        if config.prompts * stage.group % config.devices:
            raise ValueError(f"stages.{number}: {config.prompts * stage.group} responses are no multiple of devices = {config.devices}")
