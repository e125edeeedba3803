"""What `pretrain` holds in the memory of its fullest process, for every engine and way to share the work that a plan
takes.

How an engine spreads weights, gradients and moments is read from its code at the pinned version (Colossal-AI 0.5.0,
PyTorch's FSDP2), as said beside it, and held against the tensors of real processes on gloo
(tests/training/stages/pretrain/test_colossal.py) and FSDP2's cut (tests/training/lib/modeling/test_memory.py), as are
activations under tensor parallelism. Which of Gemini's chunks are whole at one time, and activations under pipeline
parallelism, were held against nothing that ran.
"""

from __future__ import annotations

from typing import Any

from stages.lib.modeling.memory import (
    FULL,
    HALF,
    LOGITS,
    Activations,
    Share,
    copied_parameters,
    held_block,
    share_activations,
    with_copies,
)
from stages.lib.modeling.shape import ModelShape

Sums = tuple[dict[str, float], dict[str, float]]
"""Bytes by part in the training, and in another phase of the same GPU."""

LOSS_CHUNK = 4096
"""stages.lib.modeling.kernels.LOSS_CHUNK: tokens whose logits exist at one time in this project's own loss."""
MIN_CHUNK = SEARCHED = 32 << 20
"""Parameters of Gemini's smallest chunk, and how far beyond the largest weight it looks for a better one
(GeminiPlugin's min_chunk_size_m and search_range_m).
"""


def stage_layers(layers: int, stages: int) -> list[int]:
    """Blocks of each stage of a pipeline: Colossal-AI gives what is left over to those in the middle
    (`PipelineStageManager.distribute_layers`).
    """
    each, rest = divmod(layers, stages)
    first = stages // 2 - rest // 2
    return [each + (first <= stage < first + rest) for stage in range(stages)]


class Held:
    """The part of the model that a process of one stage of a pipeline has, before ZeRO cuts it."""

    def __init__(self, config: Any, shape: ModelShape, vocabulary: int, stage: int = 0) -> None:
        sizes = config.parallel
        self.tensor, self.stages, self.stage = sizes.tensor, sizes.pipeline, stage
        self.layers = stage_layers(shape.layers, self.stages)[stage]
        self.block = held_block(shape, self.tensor)
        first, self.head = stage == 0, stage == self.stages - 1
        ends = (int(first) + int(self.head)) * vocabulary * shape.hidden + int(self.head) * shape.hidden
        self.parameters = self.layers * self.block + ends
        inner = shape.intermediate * shape.hidden / self.tensor
        self.largest = vocabulary * shape.hidden if first or self.head else inner


def sums(config: Any, processes: int, shape: ModelShape, vocabulary: int) -> Sums:
    """Of the fullest process."""
    parts = processes // config.parallel.model_parallel_size
    each = _colossalai if config.engine == "colossalai" else _torch
    stages = [
        each(config, parts, shape, vocabulary, Held(config, shape, vocabulary, stage))
        for stage in range(config.parallel.pipeline)
    ]
    return max(stages, key=lambda by_part: sum(by_part.values())), {}


def on_processors(config: Any, processes: int, shape: ModelShape, vocabulary: int) -> Sums:
    """Of a process without a GPU.

    One alone, of engine `torch`, has threads that take sequences of a batch each, and hold whole gradients of their own
    until these are added up (stages/lib/training/gradient_threads.py). Nothing that a backward pass frees on the way is
    counted as room for them: an allocator keeps it for what is as small (benchmarks/shape_memory.py measured that).
    """
    threads = 1 if processes > 1 or config.engine == "colossalai" else config.threads
    if threads == 1:
        return sums(config, processes, shape, vocabulary)
    each = max(1, config.micro_batch_size // threads)
    pieces = -(-config.global_batch_size // each)
    flying = min(threads, pieces)
    together = config.model_copy(update={"micro_batch_size": flying * each})
    parts, other = sums(together, processes, shape, vocabulary)
    added_up = FULL * shape.parameters(vocabulary) if pieces > flying else 0.0
    return parts | {"gradients": added_up + flying * FULL * shape.parameters(vocabulary)}, other


def _pass(config: Any, parts: int, shape: ModelShape, vocabulary: int, held: Held, autocast: bool) -> Activations:
    tokens = _tokens(config, parts)
    loss = float(LOGITS * min(LOSS_CHUNK, tokens / held.tensor) * vocabulary)
    share = Share(held.layers, held.tensor, held.head)
    return share_activations(shape, tokens, config.recompute, autocast, loss, share)


def _tokens(config: Any, parts: int) -> int:
    """Of one forward pass."""
    return min(config.micro_batch_size, config.global_batch_size // parts) * config.sequence_length


def _torch(config: Any, parts: int, shape: ModelShape, vocabulary: int, held: Held) -> dict[str, float]:
    """FSDP2 over the parts of the batch, DTensor within one (stages/lib/training/backends/fsdp.py): states are cut; at
    stage 1 gradients of all but the last micro-batch add up whole; below 3 weights are gathered whole, else two blocks
    and the two vocabularies.
    """
    count, zero, autocast = held.parameters, config.parallel.zero_of("torch"), config.precision != "fp32"
    copies = HALF * copied_parameters(shape, vocabulary, held.tensor) if autocast else 0.0
    one = _pass(config, parts, shape, vocabulary, held, autocast)
    several = config.global_batch_size // parts > config.micro_batch_size
    gathered = FULL * (2 * held.block + 2 * held.largest if zero == 3 else count) if parts > 1 else 0.0
    return {
        "weights": FULL * count / parts,
        "gradients": FULL * count if several and zero == 1 else FULL * count / parts,
        "masters, moments": 2 * FULL * count / parts,
        "activations": with_copies(one, copies, config.recompute) * (1 if autocast else 2),  # float32: twice as wide
        "buffers": gathered,
    }


def _colossalai(config: Any, parts: int, shape: ModelShape, vocabulary: int, held: Held) -> dict[str, float]:
    one = _pass(config, parts, shape, vocabulary, held, False)
    # 1F1B: a stage holds as many micro-batches as there are stages from it on, with what it received and what it sent
    micro_batches = max(1, config.global_batch_size // parts // config.micro_batch_size)
    flying = min(held.stages - held.stage, micro_batches)
    sent = 2 * HALF * shape.hidden * _tokens(config, parts) / held.tensor if held.stages > 1 else 0.0
    working = (flying * (one.kept + sent) + max(one.block, one.loss)) * (1 if config.precision != "fp32" else 2)
    return {**states(config, parts, held, working), "activations": working}


def states(config: Any, parts: int, held: Held, working: float) -> dict[str, float]:
    """What Colossal-AI keeps beside activations. parts: of the batch. working: bytes of activations."""
    size = FULL if config.precision == "fp32" else HALF
    kind = {0: _whole, 3: _gemini}.get(config.parallel.zero_of("colossalai"), _low_level_zero)
    return kind(config, parts, held, size, working)


def _low_level_zero(config: Any, parts: int, held: Held, size: int, working: float) -> dict[str, float]:
    """LowLevelZeroOptimizer, also within HybridParallelPlugin: whole weights in the training's precision; float32
    masters and two moments of a part; at stage 1 gradients add up whole and are exchanged once, at stage 2 each process
    keeps its part. A bucket and the largest gradient exist twice while they are exchanged; gradients of a part are
    float32 at the update.
    """
    count = held.parameters
    return {
        "weights": size * count,
        "gradients": size * count if config.parallel.zero_of("colossalai") == 1 else size * count / parts,
        "masters, moments": 0.0 if config.parallel.offload else 12 * count / parts,
        "buffers": 4 * size * held.largest + FULL * count / parts,
    }


def _whole(config: Any, parts: int, held: Held, size: int, working: float) -> dict[str, float]:
    """HybridParallelPlugin with zero_stage 0: each process has all. In half precision MixedPrecisionOptimizer makes the
    gradients float32 at the update, when no activations are left. DDP's buckets are as large as all gradients
    (gradient_as_bucket_view is off), also around a single process; a pipeline has no DDP, and flattens all gradients
    for the exchange between parts.
    """
    count, half = held.parameters, size == HALF
    bucket = size * count if parts > 1 or held.stages == 1 else 0.0
    return {
        "weights": size * count,
        "gradients": size * count,
        "masters, moments": (12 if half else 8) * count,
        "buffers": bucket + (max(0.0, (FULL - HALF) * count - working) if half else 0.0),
    }


def _gemini(config: Any, parts: int, held: Held, size: int, working: float) -> dict[str, float]:
    """GeminiPlugin, static placement, all on the GPU: weights lie in chunks that are cut over the processes, float32
    masters and moments in the same cut. Gradients take the weights' place in their chunks, unless several micro-batches
    add up: then they have chunks of their own. Whole at one time: the chunk that is computed with, one that a weight
    reaches over into, and one of gradients. `ChunkAdamW` makes a part's gradients float32 at the update. A model
    smaller than one chunk is whole in each process.
    """
    count, several = held.parameters, config.global_batch_size // parts > config.micro_batch_size
    cut = parts if count >= MIN_CHUNK else 1
    chunk = min(count, max(MIN_CHUNK, held.largest) + SEARCHED)
    return {
        "weights": size * count / cut,
        "gradients": size * count / cut if several else 0.0,
        "masters, moments": 12 * count / cut,
        "buffers": 3 * size * chunk + FULL * count / cut,
    }
