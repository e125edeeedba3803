"""What a training node needs of a GPU's memory and of its machine's, part by part, against what they have: for
`moxin plan` and docs/parallelism.md.

Each sum is of one GPU at its fullest, in bytes. The activations are a formula that is tested against steps that ran
(`stages/lib/modeling/memory.py`, tests/training/lib/modeling/test_memory.py); how an engine spreads weights, gradients
and moments is read from its code at the pinned version, as said beside it. P is the number of parameters, d the GPUs
that share them. Not in it: fragments that an allocator cannot use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flows import host_memory, pretraining_memory
from flows.pretraining_memory import Sums
from flows.profiles import Profile
from stages.core.artifacts import ArtifactManifest
from stages.core.graph import Pipeline
from stages.core.resources import Resources
from stages.lib.finetuning import inference_memory
from stages.lib.modeling.memory import FULL, HALF, activations, block_parameters, copied_parameters, with_copies
from stages.lib.modeling.shape import ModelShape

GIB = 2**30
CONTEXT = 1.5 * GIB
"""CUDA's context, NCCL's buffers and cuBLAS's workspace of one process (declared; some 0.5 GiB each)."""
ASLEEP = 2 * GIB
"""What a vLLM that sleeps keeps: graphs and a context of its own (declared)."""
SGLANG = 0.8
"""AReaL's mem_fraction_static: stages/lib/engines/areal.py."""
MOST = 0.95
"""Of the card: beyond it an allocator's fragments do not fit."""
VOCABULARY = 32_000


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU by part, and of the card. `other`: a second sum, of the GPU's (or the other GPUs') other phase,
    where there is one.
    """

    parts: Mapping[str, float]
    card: float
    other: Mapping[str, float] = field(default_factory=dict[str, float])
    measuring: float = 0.0
    """While parent and child are measured, before and after the training."""
    host: Mapping[str, float] = field(default_factory=dict[str, float])
    """Bytes of one machine's main memory by part, when it holds the most."""
    machine: float = 0.0
    """Of main memory, by the profile."""

    @property
    def total(self) -> float:
        """The largest sum."""
        return max(sum(self.parts.values()), sum(self.other.values()), self.measuring)

    @property
    def fits(self) -> bool:
        """Within what an allocator can use."""
        return self.total <= MOST * self.card

    def row(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "parts": dict(self.parts),
            "other": dict(self.other),
            "measuring": self.measuring,
            "total": self.total,
            "card": self.card,
            "fits": self.fits,
            "host": dict(self.host),
            "machine": self.machine,
        }

    def largest(self) -> str:
        """The fullest sum, its parts from the largest on."""
        sums = [
            ("", self.parts),
            ("while answers are written ", self.other),
            ("while it measures ", {"all": self.measuring}),
        ]
        when, parts = max(sums, key=lambda pair: sum(pair[1].values()))
        largest_first = sorted(((n, v) for n, v in parts.items() if v >= 0.05 * GIB), key=lambda pair: -pair[1])
        return when + ", ".join(f"{name} {value / GIB:.1f}" for name, value in largest_first)

    def limits(self, name: str) -> list[str]:
        """A line for each memory that it does not fit. name: the node."""
        lines = [] if self.fits else [f"{name}: needs {self.text()} of a GPU's memory: {self.largest()}"]
        held = sum(self.host.values())
        if held > self.machine:
            parts = ", ".join(f"{part} {value / GIB:.1f}" for part, value in self.host.items())
            lines.append(
                f"{name}: needs {held / GIB:.1f} GiB of main memory, but resources.{name}.memory_gib ="
                f" {self.machine / GIB:g}: {parts}"
            )
        return lines

    def text(self) -> str:
        """Of a GPU."""
        return f"{self.total / GIB:.0f} of {self.card / GIB:.0f} GiB"

    def summary(self) -> str:
        """For the plan's table: of a GPU, where there is one, and of a machine."""
        gpu = [f"{self.text()} a GPU"] if self.card else []
        held = sum(self.host.values()) / GIB
        return "; ".join([*gpu, f"{held:.{0 if held >= 10 else 1}f} of {self.machine / GIB:.0f} GiB main memory"])


def of_node(
    stage: str,
    config: Any,
    resources: Resources,
    shape: ModelShape,
    vocabulary: int,
    card: float,
    measuring: float = 0.0,
) -> Memory | None:
    """The memory of a training node; None: not a training, or one that no formula is known for (`unknown`).

    card: its bytes. measuring: bytes that measuring takes by itself (`Stage.measuring`).
    """
    if unknown(stage, config, resources) or stage not in STAGES:
        return None
    processes = resources.ranks * resources.nodes
    bare = stage == "pretrain" and not resources.gpus
    formula = pretraining_memory.on_processors if bare else STAGES[stage]
    parts, other = formula(config, processes, shape, vocabulary)
    machine = resources.memory_gib * GIB
    if not resources.gpus:
        rest = {part: value * resources.ranks for part, value in parts.items() if value}
        return Memory({}, 0.0, host={"processes": host_memory.CPU_PROCESS * resources.ranks, **rest}, machine=machine)
    host = host_memory.needed(stage, config, resources, shape.parameters(vocabulary))
    if other.get("rollout engine"):  # a share of the card
        other["rollout engine"] *= card
    parts["context"] = CONTEXT
    if other:
        other["context"] = CONTEXT
    return Memory(
        {k: float(v) for k, v in parts.items()},
        card,
        {k: float(v) for k, v in other.items()},
        measuring + CONTEXT if measuring else 0.0,
        host,
        machine,
    )


def unknown(stage: str, config: Any, resources: Resources) -> str:
    """Why no formula says what a node that needs GPUs, or trains, takes; "": one does, or it does neither."""
    if stage not in STAGES:
        return f"stage '{stage}' has none" if resources.gpus else ""
    trained_here = resources.gpus or stage in ("pretrain", "vlm")
    return "" if trained_here else "none for post-training without GPUs"


def _trl(config: Any, tokens: float, shape: ModelShape, vocabulary: int) -> Sums:
    """TRL on one GPU: float32 weights, autocast, all logits of a micro-batch at one time, which its metrics read a
    second time (16 bytes, declared).
    """
    count, autocast = shape.parameters(vocabulary), config.precision == "bf16"
    activation_bytes = activations(shape, vocabulary, tokens, config.recompute, autocast=autocast, logits=16)
    copies = HALF * copied_parameters(shape, vocabulary) if autocast else 0.0
    working = with_copies(activation_bytes, copies, config.recompute) * (1 if autocast else 2)
    return {
        "weights": FULL * count,
        "gradients": FULL * count,
        "masters, moments": 2 * FULL * count,
        "activations": working,
        "buffers": 0.0,
    }, {}


def _open_instruct(config: Any, rows: int, gpus: int, logits: int, shape: ModelShape, vocabulary: int) -> Sums:
    """DeepSpeed 0.15.4, ZeRO-3 as `stages/lib/engines/open_instruct.deepspeed_config` sets it: 16 bytes a parameter cut
    over the GPUs, gathered weights up to stage3_max_live_parameters (1e9), gradients of sub_group_size (1e9) in float32
    at the update, buckets of H x H.
    """
    count = shape.parameters(vocabulary)
    activation_bytes = activations(
        shape, vocabulary, rows * config.max_length, config.recompute, autocast=False, logits=logits
    )
    return {
        "weights": HALF * count / gpus,
        "gradients": HALF * count / gpus,
        "masters, moments": 12 * count / gpus,
        "activations": activation_bytes.most,
        "buffers": HALF * min(1e9, count) + FULL * min(1e9, count / gpus) + 4 * HALF * shape.hidden**2,
    }, {}


def _sft(config: Any, gpus: int, shape: ModelShape, vocabulary: int) -> Sums:
    if config.engine == "trl":
        return _trl(config, config.micro_batch_size * config.max_length, shape, vocabulary)
    # finetune.py sums its own loss over shifted logits while transformers' own (labels are given) is still there
    return _open_instruct(config, config.micro_batch_size, gpus, 20, shape, vocabulary)


def _dpo(config: Any, gpus: int, shape: ModelShape, vocabulary: int) -> Sums:
    if config.engine == "trl":
        return _trl(config, 2 * config.micro_batch_size * config.max_length, shape, vocabulary)
    return _open_instruct(
        config, 2 * config.micro_batch_size, gpus, 14, shape, vocabulary
    )  # chosen and rejected in one forward pass, logits in float32


def _grpo(config: Any, gpus: int, shape: ModelShape, vocabulary: int) -> Sums:
    count, largest, here = shape.parameters(vocabulary), vocabulary * shape.hidden, config.context_phases[-1]
    if config.engine == "trl":
        parts, _ = _trl(
            config, config.micro_batch_size * (config.max_prompt_length + here.max_response_length), shape, vocabulary
        )
        reference = FULL * count if config.kl_coef else 0.0
        rest = FULL * count * 3 + reference  # no gradients while answers are written
        parts["reference"] = reference
        rows = config.rollout_rows(shape, len(config.context_phases) - 1)
        return parts, {
            "weights, moments, reference": rest,
            "keys and values": rows * inference_memory.cache_bytes(shape, config.longest, "fp32"),
            "activations": FULL * 2 * rows * vocabulary,
        }
    # All logits of the packed tokens at one time, in bf16 and for log-probabilities and entropy: more than an engine
    # that cuts them up needs
    activation_bytes = activations(
        shape, vocabulary, config.max_tokens_per_gpu, config.recompute, autocast=False, logits=14
    )
    gathered = HALF * (2 * block_parameters(shape) + 2 * largest)
    if config.engine == "verl":
        # FSDP2 over all GPUs, float32 states, bf16 computation; the reference lies in main memory. vLLM sleeps while it
        # trains; when it wakes, the states are still there
        states = {
            "weights": FULL * count / gpus,
            "gradients": FULL * count / gpus,
            "masters, moments": 2 * FULL * count / gpus,
        }
        writing = {"weights, moments": 12 * count / gpus, "rollout engine": config.rollout_gpu_memory_utilization}
        return {**states, "activations": activation_bytes.most, "buffers": gathered + ASLEEP}, writing
    trains = max(1, gpus // 2)
    # AReaL 1.0.4: FSDP2 over one half, states in bf16, a reference beside the actor; SGLang has the other half
    states = {
        "weights": HALF * count / trains,
        "gradients": HALF * count / trains,
        "masters, moments": 2 * HALF * count / trains,
    }
    reference = {"reference": HALF * count / trains if config.kl_coef else 0.0}
    return {**states, **reference, "activations": activation_bytes.most, "buffers": gathered}, {
        "rollout engine": SGLANG
    }


def _vlm(config: Any, gpus: int, shape: ModelShape, vocabulary: int) -> Sums:
    """FSDP2 (stages/lib/training/backends/fsdp.py, cast_weights): float32 states and gradients cut, bf16 blocks
    gathered; logits of answers alone, at most a row's length.
    """
    count, largest = shape.parameters(vocabulary), vocabulary * shape.hidden
    tokens = min(config.micro_batch_size, config.global_batch_size // gpus) * config.max_length
    alone = gpus == 1 and config.precision == "bf16"
    activation_bytes = activations(shape, vocabulary, tokens, config.recompute, autocast=alone)
    working = (
        with_copies(activation_bytes, HALF * copied_parameters(shape, vocabulary), config.recompute)
        if alone
        else activation_bytes.most
    )
    size, zero = HALF if config.precision == "bf16" else FULL, config.parallel.zero_of("torch")
    several = config.global_batch_size // gpus > config.micro_batch_size
    gathered = size * (2 * block_parameters(shape) + 2 * largest if zero == 3 else count)
    gathered = gathered + FULL * block_parameters(shape) if gpus > 1 else 0.0
    states = {
        "weights": FULL * count / gpus,
        "gradients": FULL * count if several and zero == 1 else FULL * count / gpus,
        "masters, moments": 2 * FULL * count / gpus,
    }
    return {**states, "activations": working * size / HALF, "buffers": gathered}, {}


STAGES: dict[str, Any] = {"pretrain": pretraining_memory.sums, "sft": _sft, "dpo": _dpo, "grpo": _grpo, "vlm": _vlm}


def of_profile(profile: Profile, pipeline: Pipeline, card: float) -> dict[str, Memory]:
    """Every training node of a profile that a formula is known for, before anything has run. card: bytes of a GPU."""
    shapes: dict[str, ModelShape] = {}
    memories: dict[str, Memory] = {}
    for node in pipeline:
        config: Any = profile.configs[node.name]
        inherited = [
            shapes[s.node.name]
            for port in ("parent", "base", "model")
            for s in node.wires.get(port, ())
            if s.node.name in shapes
        ]
        shape = getattr(config, "shape", None) or (inherited[0] if inherited else None)
        if not isinstance(shape, ModelShape):
            continue
        shapes[node.name] = shape
        if node.stage not in STAGES:
            continue
        measured = node.measuring(
            config,
            {port: [_expected(shapes.get(s.node.name)) for s in sources] for port, sources in node.wires.items()},
        )
        one = of_node(
            node.stage,
            config,
            profile.resources[node.name],
            shape,
            VOCABULARY,
            card,
            measured.memory_bytes if measured else 0.0,
        )
        if one is not None:
            memories[node.name] = one
    return memories


def _expected(shape: ModelShape | None) -> ArtifactManifest:
    """An artifact that is not there yet; of a model, what is known."""
    meta = {"shape": shape.model_dump(), "parameters": shape.parameters(VOCABULARY)} if shape else {}
    return ArtifactManifest(type="", digest="0" * 64, facets={}, meta=meta, files=())


COLUMNS = ("weights", "gradients", "masters, moments", "reference", "activations", "buffers", "context")


def table(profile: Profile, pipeline: Pipeline, card: float) -> str:
    """`of_profile` as Markdown, in GiB."""
    head = [
        "node",
        "engine",
        "GPUs",
        *COLUMNS,
        "**training**",
        "writing answers",
        "measuring",
        "card",
        "main memory",
        "of",
    ]
    lines = [f"| {' | '.join(head)} |", "| --- | --- |" + " ---: |" * (len(head) - 2)]
    for name, one in of_profile(profile, pipeline, card).items():
        config, resources = profile.configs[name], profile.resources[name]
        cells = [name, str(getattr(config, "engine", "torch")), str(resources.gpus * resources.nodes)]
        cells += [_gib(one.parts.get(column, 0.0)) for column in COLUMNS]
        cells.append(f"**{_gib(sum(one.parts.values()))}**")
        rest = (sum(one.other.values()), one.measuring, one.card, sum(one.host.values()), one.machine)
        cells += map(_gib, rest)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _gib(value: float) -> str:
    return f"{value / GIB:.1f}" if value else ""
