"""Which sizes of `ParallelSizes` go together with the rest of a configuration, and with a number of processes: found
when a profile is read, before anything runs. Light.

Each refusal names the setting, its value, the reason and what to do; docs/parallelism.md has the list.
"""

from __future__ import annotations

from typing import Any

from stages.core.errors import ConfigError
from stages.core.renamed import Moved
from stages.core.resources import Resources

FORMER_SIZES = (
    Moved("tensor_parallel", "tensor", until="0.3"),
    Moved("colossalai.pipeline", "pipeline", until="0.3"),
    Moved("colossalai.zero_stage", "zero", until="0.3"),
    Moved("colossalai.cpu_offload", "offload", until="0.3"),
    Moved(
        "colossalai.plugin",
        "zero",
        until="0.3",
        values={"gemini": 3},
        advice="follows from parallel.zero (3: gemini), parallel.tensor and parallel.pipeline now: remove it",
    ),
)
"""Where the sizes were in version 0.1."""


def require_runnable(config: Any) -> None:
    """Raise ValueError for sizes that do not go together with the rest of a decoder's configuration."""
    sizes = config.parallel
    _require_one_context(config)
    _require_divisible(config)
    if config.engine == "colossalai":
        _require_colossalai(config)
        return
    _require_torch(config)  # and of engines that stand on it
    if config.compile and sizes.tensor > 1:
        raise ValueError(
            f"compile = true cannot be combined with parallel.tensor = {sizes.tensor} (messages between processes"
            " lie within a block): set compile = false, or parallel.tensor = 1"
        )


def require_data_parallel(config: Any) -> None:
    """Raise ValueError for sizes that a model of transformers, trained by engine `torch`, has no way to take."""
    for name in ("tensor", "pipeline", "context"):
        if (value := getattr(config.parallel, name)) > 1:
            raise ValueError(
                f"parallel.{name} = {value}, but this stage's model is transformers' own, which shares the batch alone:"
                " set 1"
            )
    _require_torch(config)


def require_fitting_processes(node: str, config: Any, size: int) -> None:
    """Raise ConfigError when `size` processes, over all nodes, cannot share the model and the batch evenly."""
    sizes = config.parallel
    shared_by = sizes.model_parallel_size
    if size % shared_by:
        used = [f"parallel.{name}" for name in ("tensor", "pipeline", "context") if getattr(sizes, name) > 1]
        raise ConfigError(f"{node}.{' x '.join(used)} = {shared_by} does not divide the {size} processes")
    parts = size // shared_by
    if sizes.data not in (None, parts):
        raise ConfigError(
            f"{node}.parallel.data = {sizes.data}, but {size} processes"
            + (f" in groups of {shared_by}" if shared_by > 1 else "")
            + f" make {parts} parts: set {parts}, leave it out, or change the processes"
        )
    require_shared_batch(node, config.global_batch_size, parts)
    if sizes.pipeline > 1:
        _require_microbatches(node, config, config.global_batch_size // parts)


def require_resources(node: str, config: Any, resources: Resources) -> None:
    """Raise ConfigError when the processes that a profile gives a training cannot share it, or cannot compute so."""
    require_fitting_processes(node, config, resources.nodes * resources.ranks)
    if not resources.gpus and config.precision != "fp32":
        raise ConfigError(
            f"{node}.precision = '{config.precision}', but resources.{node}.gpus = 0: half precision is about 100 times"
            " slower than fp32 on a processor: set precision = 'fp32', or give it GPUs"
        )


def require_shared_batch(node: str, size: int, parts: int) -> None:
    """Raise ConfigError when a global batch of `size` cannot be cut into equal parts."""
    if size % parts:
        raise ConfigError(f"{node}.global_batch_size = {size} cannot be shared evenly by {parts} parts: change either")


def _require_one_context(config: Any) -> None:
    if config.parallel.context > 1:
        raise ValueError(
            f"parallel.context = {config.parallel.context}: no engine here cuts a sequence within attention. It is for"
            f" sequences whose activations do not fit one GPU, from tens of thousands of tokens on (sequence_length is"
            f" {config.sequence_length}): set 1; parallel.tensor cuts the tokens between blocks, recompute saves more"
        )


def _require_divisible(config: Any) -> None:
    """Tensor parallelism must be able to share the matrices and the tokens evenly."""
    tensor, shape = config.parallel.tensor, config.shape
    if shape.kv_heads % tensor:
        raise ValueError(
            f"parallel.tensor = {tensor} cannot share {shape.heads} query and {shape.kv_heads} key-value heads evenly: "
            "choose a divisor of the key-value heads"
        )
    for name, value in (("sequence_length", config.sequence_length), ("shape.intermediate", shape.intermediate)):
        if value % tensor:
            raise ValueError(f"{name} = {value} cannot be shared evenly by parallel.tensor = {tensor}")


def _require_torch(config: Any) -> None:
    sizes = config.parallel
    if sizes.pipeline > 1:
        raise ValueError(
            f"parallel.pipeline = {sizes.pipeline}, but engine 'torch' has no pipeline: set 1, or engine = 'colossalai'"
        )
    if sizes.zero == 0:
        raise ValueError(
            "parallel.zero = 0, but engine 'torch' cuts the moments always (FSDP2): set 1, which exchanges gradients as"
            " often, 2 or 3"
        )
    if sizes.offload:
        raise ValueError(
            "parallel.offload = true, but engine 'torch' keeps its states where it computes: set false, or engine ="
            " 'colossalai'"
        )


def _require_colossalai(config: Any) -> None:
    """What Colossal-AI 0.5.0 cannot do, and where it says so itself only when it runs."""
    sizes = config.parallel
    zero, shares_model = sizes.zero_of("colossalai"), sizes.tensor * sizes.pipeline > 1
    if config.compile:
        raise ValueError("engine 'colossalai' compiles no blocks: set compile = false, or engine = 'torch'")
    if zero == 3:
        if shares_model:
            raise ValueError(
                "parallel.zero = 3 is Gemini in engine 'colossalai', which shares the batch alone: set parallel.tensor"
                f" and parallel.pipeline to 1 (they are {sizes.tensor} and {sizes.pipeline}), or another parallel.zero"
            )
        _require_gpu(
            config,
            "parallel.zero = 3 is Gemini in engine 'colossalai', which moves weights between the memories of GPU and"
            " processor",
            "another parallel.zero",
        )
    if sizes.offload:
        if zero in (0, 3):
            raise ValueError(
                f"parallel.offload = true is for parallel.zero = 1 and 2 (it is {zero}): set one of them, or false"
            )
        _require_gpu(config, "parallel.offload = true moves memory off GPUs", "parallel.offload = false")
    if zero in (1, 2) and shares_model and config.precision == "fp32":
        raise ValueError(
            f"parallel.zero = {zero} beside parallel.tensor or parallel.pipeline, which Colossal-AI has not in float32:"
            " set parallel.zero = 0, or precision 'bf16' or 'fp16'"
        )
    if sizes.pipeline > config.shape.layers:
        raise ValueError(
            f"parallel.pipeline = {sizes.pipeline} is deeper than the model: shape.layers = {config.shape.layers}"
        )
    if sizes.pipeline > 1 and zero == 2:
        raise ValueError(
            "parallel.zero = 2 would exchange gradients after every micro-batch of a pipeline, which Colossal-AI"
            " refuses: set 0 or 1"
        )


def _require_gpu(config: Any, why: str, otherwise: str) -> None:
    if config.device != "cuda" or config.precision == "fp32":
        raise ValueError(
            f"{why}: set device = 'cuda' with precision 'bf16' or 'fp16' (they are '{config.device}' and"
            f" '{config.precision}'), or {otherwise}"
        )


def _require_microbatches(node: str, config: Any, windows: int) -> None:
    """Raise ConfigError when a part of `windows` windows of each batch cannot be cut into the micro-batches that a
    pipeline needs.
    """
    depth, size = config.parallel.pipeline, config.micro_batch_size
    if windows % size or windows // size < depth:
        raise ConfigError(
            f"{node}: parallel.pipeline = {depth} needs as many whole micro-batches in each part of a batch:"
            f" {windows} windows are {windows / size:g} of micro_batch_size = {size}"
        )
