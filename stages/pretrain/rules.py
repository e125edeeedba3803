"""What cannot be shared out, and what Colossal-AI cannot honour, found when the configuration is read: before anything runs. Light."""

from __future__ import annotations

from typing import Any


def require_divisible(config: Any) -> None:
    """Raise ValueError when the processes cannot share the matrices, the tokens or the batch evenly."""
    tensor, shape = config.tensor_parallel, config.shape
    if shape.kv_heads % tensor:
        raise ValueError(
            f"tensor_parallel = {tensor} cannot share {shape.heads} query and {shape.kv_heads} key-value heads evenly: "
            "choose a divisor of the key-value heads"
        )
    for name, value in (("sequence_length", config.sequence_length), ("shape.intermediate", shape.intermediate)):
        if value % tensor:
            raise ValueError(f"{name} = {value} cannot be shared evenly by tensor_parallel = {tensor}")
    parts = config.processes // config.together
    if config.processes > 1 and (config.processes % config.together or config.batch_windows % parts):
        pipeline = f" x colossalai.pipeline = {config.together // tensor}" if config.together > tensor else ""
        raise ValueError(
            f"processes = {config.processes} must be a multiple of tensor_parallel = {tensor}{pipeline}, and their parts must "
            f"divide batch_windows = {config.batch_windows}"
        )


def require_colossalai(config: Any) -> None:
    """Raise ValueError for what Colossal-AI 0.5.0 cannot do, and where it says so itself only when it runs."""
    own = config.colossalai
    if config.compile:
        raise ValueError("engine 'colossalai' compiles no blocks: set compile = false, or engine = 'torch'")
    if own.plugin != "hybrid":
        for name, value in (("tensor_parallel", config.tensor_parallel), ("colossalai.pipeline", own.pipeline)):
            if value > 1:
                raise ValueError(f"colossalai.plugin = '{own.plugin}' shares the batch only: set {name} = 1 (it is {value}), or plugin = 'hybrid'")
    if own.plugin == "low_level_zero" and own.zero_stage == 0:
        raise ValueError("colossalai.zero_stage = 0 is no ZeRO: set 1 or 2, or colossalai.plugin = 'hybrid'")
    if own.plugin == "gemini":
        _require_gpu(config, "colossalai.plugin = 'gemini' needs GPUs (it moves weights between their memory and the processor's)")
    if own.cpu_offload:
        _require_gpu(config, "colossalai.cpu_offload = true moves memory off GPUs")
        if own.plugin == "gemini" or own.zero_stage == 0:
            raise ValueError("colossalai.cpu_offload = true is ZeRO's: set colossalai.zero_stage = 1 or 2 with another plugin than 'gemini'")
    if own.plugin == "hybrid":
        _require_hybrid(config)
    if config.processes > 1:  # one: GPUs may make it more, and `world.join` looks again
        require_microbatches(config, config.batch_windows // (config.processes // config.together))


def _require_gpu(config: Any, why: str) -> None:
    if config.device != "cuda" or config.precision == "fp32":
        raise ValueError(
            f"{why}: set device = 'cuda' with precision 'bf16' or 'fp16' (they are '{config.device}' and '{config.precision}'), or another plugin"
        )


def _require_hybrid(config: Any) -> None:
    own, layers = config.colossalai, config.shape.layers
    if own.zero_stage and config.precision == "fp32":
        raise ValueError(
            f"colossalai.plugin = 'hybrid' has no ZeRO in float32: set colossalai.zero_stage = 0 (it is {own.zero_stage}), "
            "plugin = 'low_level_zero', or precision 'bf16' or 'fp16'"
        )
    if own.pipeline > layers:
        raise ValueError(f"colossalai.pipeline = {own.pipeline} is deeper than the model: shape.layers = {layers}")
    if own.pipeline > 1 and own.zero_stage == 2:
        raise ValueError("colossalai.zero_stage = 2 would exchange gradients after every micro-batch of a pipeline, which Colossal-AI refuses: set 0 or 1")

def require_microbatches(config: Any, windows: int) -> None:
    """Raise ValueError when a part of `windows` windows of each batch cannot be cut into the micro-batches that the plugin needs."""
    own, size = config.colossalai, config.micro_batch
    if own.pipeline > 1 and (windows % size or windows // size < own.pipeline):
        raise ValueError(
            f"colossalai.pipeline = {own.pipeline} needs as many whole micro-batches in each part of a batch: {windows} windows "
            f"are {windows / size:g} of micro_batch = {size}"
        )
