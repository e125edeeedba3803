"""The paper's block stack on one GPU: tokens per second, model FLOPs utilization and memory, beside transformers.

    python -m benchmarks.training_gpu                                    # BF16, contexts 2,000 and 4,000, as many
    layers as fit python -m benchmarks.training_gpu --precision fp16 --layers 8 python -m benchmarks.training_gpu
    --device cpu --small --precision fp32    # does it run at all: its numbers mean nothing

The stack has the 7B model's blocks (paper Table 1) and its vocabulary of 32,000. Contexts 2,000 and 4,000 (paper 3.4),
BF16 or FP16 by autocast, float32 weights, AdamW, no dropout (flash attention and torch.compile are then at their best).
FLOPs are those of `ModelShape.flops_per_token`, so utilization counts no recomputation. Rows: this project, the same
with its blocks under torch.compile (the stage's own `compile = true`), transformers with SDPA, with flash_attention_2
where flash-attn is installed, and with SDPA under torch.compile.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from stages.lib.modeling.decoder import MoxinLM
from stages.lib.modeling.hf_checkpoint import config_json
from stages.lib.modeling.kernels import LOSS_CHUNK
from stages.lib.modeling.memory import FULL, HALF, activations, copied_parameters
from stages.lib.modeling.shape import ModelShape

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PEAKS = {"H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense FP16 and BF16 FLOP/s (NVIDIA's data sheets, half of the figures with sparsity); the first name that fits the
card's.
"""
FILLED = 0.85
"""Of the card's memory that the plan fills; the rest is the allocator's, cuBLAS's and the loss's."""
Loss = Callable[[torch.Tensor], torch.Tensor]


def step_bytes(
    shape: ModelShape, vocabulary: int, tokens: int, precision: str = "bf16", chunk: int | None = None
) -> float:
    """The most that a step of one micro-batch holds, by the formula that the plan has
    (`stages/lib/modeling/memory.py`): at the loss, where there are no gradients yet, or at the last block's backward
    pass. chunk: tokens whose logits exist at one time; None, as transformers: all.
    """
    parameters, autocast = shape.parameters(vocabulary), precision != "fp32"
    activation = activations(shape, vocabulary, tokens, "none", autocast=autocast, chunk=chunk)
    copies = HALF * copied_parameters(shape, vocabulary) if autocast else 0
    wide = 1 if autocast else FULL // HALF
    return max(
        12 * parameters + copies + wide * activation.most,
        16 * parameters + wide * (activation.kept / shape.layers + activation.block),
    )


def chunk_of(name: str) -> int | None:
    """Tokens whose logits a contender has at one time."""
    return LOSS_CHUNK if name.startswith("this project") else None


def shape_of(options: argparse.Namespace, memory: float) -> ModelShape:
    """The 7B's blocks at the asked depth, else as many as fit the memory at the longest context; or a stack that a CPU
    can try.
    """
    if options.small:
        return ModelShape(layers=2, hidden=64, intermediate=128, heads=4, kv_heads=2, head_dim=16)
    if options.layers:
        return ModelShape(layers=options.layers)
    tokens = options.batch * max(options.context)
    fitting = [
        n for n in range(1, 37) if step_bytes(ModelShape(layers=n), options.vocabulary, tokens) <= FILLED * memory
    ]
    if not fitting:
        raise SystemExit(
            f"training_gpu: not even one layer fits {memory / 2**30:.0f} GiB at {tokens:,} tokens: lower --batch or"
            " --context"
        )
    return ModelShape(layers=fitting[-1])


def peak_of(device: str) -> float | None:
    """FLOP/s of a card by its name, if it is known."""
    return next((flops for name, flops in PEAKS.items() if all(word in device for word in name.split())), None)


def row(
    name: str,
    shape: ModelShape,
    options: argparse.Namespace,
    context: int,
    seconds: float,
    memory: float,
    peak: float | None,
) -> str:
    """A line of the table."""
    tokens = options.batch * context
    rate = tokens / seconds * shape.flops_per_token(options.vocabulary, context)
    share = f"{rate / peak:.1%}" if peak else "unknown"
    said = step_bytes(shape, options.vocabulary, tokens, options.precision, chunk_of(name)) / 2**30
    return f"| {name} | {tokens / seconds:,.0f} | {rate / 1e12:.2f} | {share} | {memory / 2**30:.1f} | {said:.1f} |"


def ours(
    shape: ModelShape, vocabulary: int, device: torch.device, compiled: bool = False
) -> tuple[torch.nn.Module, Loss]:
    """This project's model, and its mean loss of ids [B, T]. compiled: as `compile = true` of the stage's engine
    `torch`.
    """
    with device:
        model = MoxinLM(shape, vocabulary)
    model.initialize(0)
    if compiled:
        model.compile_blocks()

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        total, count = model.loss_sum(ids)
        return total / count

    return model, loss_of


def theirs(
    shape: ModelShape, vocabulary: int, device: torch.device, attention: str, compiled: bool = False
) -> tuple[torch.nn.Module, Loss]:
    """transformers' model of the same configuration, and its loss; compiled: under torch.compile as a whole."""
    from transformers import MistralConfig, MistralForCausalLM

    kept: dict[str, Any] = {
        k: v for k, v in config_json(shape, vocabulary, "float32").items() if k not in ("architectures", "model_type")
    }
    config: Any = MistralConfig(**kept | {"use_cache": False, "attn_implementation": attention})
    with device:
        model: Any = MistralForCausalLM(config)

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        return model(input_ids=ids, labels=ids).loss

    return model, torch.compile(loss_of) if compiled else loss_of


def contenders() -> dict[str, Callable[[ModelShape, int, torch.device], tuple[torch.nn.Module, Loss]]]:
    """What is compared: {name: how it is built}."""
    flash = (
        {"transformers, flash_attention_2": partial(theirs, attention="flash_attention_2")}
        if importlib.util.find_spec("flash_attn")
        else {}
    )
    return {
        "this project": ours,
        "this project, torch.compile of blocks": partial(ours, compiled=True),
        "transformers, sdpa": partial(theirs, attention="sdpa"),
        **flash,
        "transformers, sdpa, torch.compile": partial(theirs, attention="sdpa", compiled=True),
    }


def measure(name: str, shape: ModelShape, context: int, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds of the median step, and the peak of memory in bytes (0 on a CPU)."""
    device, dtype = torch.device(options.device), DTYPES[options.precision]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model, loss_of = contenders()[name](shape, options.vocabulary, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")
    model.train()
    seconds = []
    for number in range(options.steps + options.warm):
        ids = torch.randint(3, options.vocabulary, (options.batch, context), device=device)
        started = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = loss_of(ids)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= options.warm:
            seconds.append(time.perf_counter() - started)
    return sorted(seconds)[len(seconds) // 2], float(torch.cuda.max_memory_allocated() if device.type == "cuda" else 0)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=0, help="0: as many as fit")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--context", type=int, nargs="+", default=[2000, 4000])
    parser.add_argument("--precision", choices=DTYPES, default="bf16")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--peak-tflops", type=float, default=0.0, help="of a card that is not known here, dense, at this precision"
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warm", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a stack that a CPU can try")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Print one Markdown table for each context."""
    options = parse(arguments)
    cuda = options.device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise SystemExit(
            "training_gpu: this machine has no GPU that PyTorch can use, and nothing was measured; --device cpu --small"
            " tries the script"
        )
    device = torch.cuda.get_device_name() if cuda else "a CPU, where these numbers mean nothing"
    shape = shape_of(options, torch.cuda.mem_get_info()[0] if cuda else float("inf"))
    peak = options.peak_tflops * 1e12 or peak_of(device)
    for context in options.context:
        print(
            f"**{device}**, {shape.layers} layers, {options.precision}, {options.batch} x {context:,} tokens, torch"
            f" {torch.__version__}\n"
        )
        print(
            "| | tokens/s | TFLOP/s | utilization | memory GiB | by formula |\n| --- | ---: | ---: | ---: | ---: |"
            " ---: |"
        )
        for name in contenders():
            try:
                print(row(name, shape, options, context, *measure(name, shape, context, options), peak), flush=True)
            except torch.OutOfMemoryError:
                said = (
                    step_bytes(shape, options.vocabulary, options.batch * context, options.precision, chunk_of(name))
                    / 2**30
                )
                free = torch.cuda.get_device_properties(0).total_memory / 2**30
                print(
                    f"| {name} | does not fit: {said:.1f} GiB by the formula, the card has {free:.1f}; lower --batch or"
                    f" --layers | | | | {said:.1f} |",
                    flush=True,
                )
            gc.collect()
            torch._dynamo.reset()
            if cuda:
                torch.cuda.empty_cache()
        print()


if __name__ == "__main__":
    main()
