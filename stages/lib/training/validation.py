"""What cannot be shared out, and what Colossal-AI cannot honour, found when the configuration is read: before anything
runs. Light.
"""

from __future__ import annotations

from typing import Any

from stages.core.errors import ConfigError


def require_divisible(config: Any) -> None:
    """Raise ValueError when tensor parallelism cannot share the matrices or the tokens evenly."""
    tensor, shape = config.tensor_parallel, config.shape
    if shape.kv_heads % tensor:
        raise ValueError(
            f"tensor_parallel = {tensor} cannot share {shape.heads} query and {shape.kv_heads} key-value heads evenly: "
            "choose a divisor of the key-value heads"
        )
    for name, value in (("sequence_length", config.sequence_length), ("shape.intermediate", shape.intermediate)):
        if value % tensor:
            raise ValueError(f"{name} = {value} cannot be shared evenly by tensor_parallel = {tensor}")


def require_fitting_processes(node: str, config: Any, size: int) -> None:
    """Raise ConfigError when `size` processes, over all nodes, cannot share the model and the batch evenly."""
    shared_by = config.model_parallel_size
    if size % shared_by:
        key = "tensor_parallel" if shared_by == config.tensor_parallel else "tensor_parallel x colossalai.pipeline"
        raise ConfigError(f"{node}.{key} = {shared_by} does not divide the {size} processes")
    parts = size // shared_by
    require_shared_batch(node, config.global_batch_size, parts)
    if config.engine == "colossalai":
        _require_microbatches(node, config, config.global_batch_size // parts)


def require_shared_batch(node: str, size: int, parts: int) -> None:
    """Raise ConfigError when a global batch of `size` cannot be cut into equal parts."""
    if size % parts:
        raise ConfigError(f"{node}.global_batch_size = {size} cannot be shared evenly by {parts} parts: change either")


def require_colossalai(config: Any) -> None:
    """Raise ValueError for what Colossal-AI 0.5.0 cannot do, and where it says so itself only when it runs."""
    settings = config.colossalai
    if config.compile:
        raise ValueError("engine 'colossalai' compiles no blocks: set compile = false, or engine = 'torch'")
    if settings.plugin != "hybrid":
        for name, value in (("tensor_parallel", config.tensor_parallel), ("colossalai.pipeline", settings.pipeline)):
            if value > 1:
                raise ValueError(
                    f"colossalai.plugin = '{settings.plugin}' shares the batch only: set {name} = 1 (it is {value}), or"
                    " plugin = 'hybrid'"
                )
    if settings.plugin == "low_level_zero" and settings.zero_stage == 0:
        raise ValueError("colossalai.zero_stage = 0 is no ZeRO: set 1 or 2, or colossalai.plugin = 'hybrid'")
    if settings.plugin == "gemini":
        _require_gpu(
            config,
            "colossalai.plugin = 'gemini' needs GPUs (it moves weights between their memory and the processor's)",
        )
    if settings.cpu_offload:
        _require_gpu(config, "colossalai.cpu_offload = true moves memory off GPUs")
        if settings.plugin == "gemini" or settings.zero_stage == 0:
            raise ValueError(
                "colossalai.cpu_offload = true is ZeRO's: set colossalai.zero_stage = 1 or 2 with another plugin than"
                " 'gemini'"
            )
    if settings.plugin == "hybrid":
        _require_hybrid(config)


def _require_gpu(config: Any, why: str) -> None:
    if config.device != "cuda" or config.precision == "fp32":
        raise ValueError(
            f"{why}: set device = 'cuda' with precision 'bf16' or 'fp16' (they are '{config.device}' and"
            f" '{config.precision}'), or another plugin"
        )


def _require_hybrid(config: Any) -> None:
    settings, layers = config.colossalai, config.shape.layers
    if settings.zero_stage and config.precision == "fp32":
        raise ValueError(
            "colossalai.plugin = 'hybrid' has no ZeRO in float32: set colossalai.zero_stage = 0 (it is"
            f" {settings.zero_stage}), plugin = 'low_level_zero', or precision 'bf16' or 'fp16'"
        )
    if settings.pipeline > layers:
        raise ValueError(f"colossalai.pipeline = {settings.pipeline} is deeper than the model: shape.layers = {layers}")
    if settings.pipeline > 1 and settings.zero_stage == 2:
        raise ValueError(
            "colossalai.zero_stage = 2 would exchange gradients after every micro-batch of a pipeline, which"
            " Colossal-AI refuses: set 0 or 1"
        )


def _require_microbatches(node: str, config: Any, windows: int) -> None:
    """Raise ConfigError when a part of `windows` windows of each batch cannot be cut into the micro-batches that the
    plugin needs.
    """
    settings, size = config.colossalai, config.micro_batch_size
    if settings.pipeline > 1 and (windows % size or windows // size < settings.pipeline):
        raise ConfigError(
            f"{node}: colossalai.pipeline = {settings.pipeline} needs as many whole micro-batches in each part of a"
            " batch:"
            f" {windows} windows are {windows / size:g} of micro_batch_size = {size}"
        )
