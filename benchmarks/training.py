"""A training step on the CPU beside its peers: tokens per second, share of the processor's peak, memory, the loss
curve.

    python -m benchmarks.training --threads 1                # both sizes, with and without dropout; tables in Markdown
    python -m benchmarks.training --size small --dropout 0.1 --rounds 3

Every contender runs in a process of its own, from the same weights, on the same windows in the same order, with AdamW
(fused), the same rate, decay and clipping. This project's step is the stage's own: `stages.pretrain`'s engine on its
batches. Rounds go over all contenders in turn, and each one's fastest step counts: on a shared machine that is the
least disturbed one. With one thread time is that of the processor, so that others on the machine count little; with
more it is by the clock. The peak is the fastest 1024 x 1024 float32 product between the same process's steps, for a
processor's clock changes within minutes.

Without dropout the curves must be equal, or this ends with an error. With it they are not comparable step by step:
masks are drawn in different ways, and transformers has dropout on attention weights alone, so its rows do less work.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RATE, DECAY, CLIP = 1e-3, 0.1, 1.0
STEPS, WARM = 10, 2
TOLERANCE = 2e-3
"""Of a loss near 7 after twelve steps in float32: sums in another order, grown by AdamW's first steps."""
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab": 2048,
        "length": 128,
        "batch": 8,
        "shape": {"layers": 4, "hidden": 128, "intermediate": 352, "heads": 4, "kv_heads": 2},
    },
    "small": {
        "vocab": 8192,
        "length": 256,
        "batch": 8,
        "shape": {"layers": 4, "hidden": 256, "intermediate": 896, "heads": 8, "kv_heads": 2},
    },
}
"""tiny: the profile's first phase. small: what docs/measurements.md calls the small size."""
CONTENDERS = {
    "moxin": "this project",
    "plain": "nanoGPT-style: the same decoder on PyTorch's operators (SDPA, full logits), bare loop",
    "loop-sdpa": "transformers, SDPA, bare loop",
    "loop-sdpa-kept": "the same with our allocator settings",
    "trainer-eager": "transformers Trainer, eager",
    "trainer-sdpa": "transformers Trainer, SDPA",
    "trl": "TRL SFTTrainer, SDPA",
}


class Meter:
    """Times steps, and the peak between them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.peak = 0.0
        self._started = 0.0

    @staticmethod
    def clock() -> float:
        """Seconds: of the processor where it works for one thread, else of the clock."""
        return time.process_time() if os.environ.get("OMP_NUM_THREADS") == "1" else time.perf_counter()

    def start(self) -> None:
        """A step begins."""
        self._started = self.clock()

    def stop(self) -> None:
        """It has ended. Measures the peak: FLOP/s of a float32 product of 1024 x 1024 matrices."""
        import torch

        self.seconds.append(self.clock() - self._started)
        one = torch.ones(1024, 1024)
        for _ in range(2):
            started = self.clock()
            torch.mm(one, one)
            self.peak = max(self.peak, 2 * 1024**3 / (self.clock() - started))


def shape_of(size: str) -> Any:
    """The model's shape: the paper's architecture; a window as long as the context, which all contenders know."""
    from stages.lib.modeling.shape import ModelShape

    return ModelShape(head_dim=32, window=4096, max_positions=4096, **SIZES[size]["shape"])


def windows(size: str) -> Any:
    """All batches [steps, B, T]: text-like frequencies, so that there is something to learn."""
    import numpy as np

    config = SIZES[size]
    draws = np.random.default_rng(0).zipf(1.2, (STEPS + WARM, config["batch"], config["length"]))
    return 3 + draws % (config["vocab"] - 3)


def folder_of(size: str, folder: Path) -> Path:
    """The starting weights as a Hugging Face folder."""

    from stages.lib.modeling.decoder import MoxinLM
    from stages.lib.modeling.hf_checkpoint import save_model

    out = folder / size
    if not out.exists():
        model = MoxinLM(shape_of(size), SIZES[size]["vocab"])
        model.initialize(0)
        out.mkdir(parents=True)
        save_model(model, out, out, "benchmark")
    return out


def _loop(meter: Meter, model: Any, loss_of: Any, size: str) -> None:
    """A bare training loop."""
    import torch

    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-8, fused=True)
    model.train()
    for batch in windows(size):
        meter.start()
        loss = loss_of(torch.from_numpy(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        meter.stop()
        meter.losses.append(float(loss.detach()))


def _moxin(meter: Meter, size: str, dropout: float, folder: Path, threads: int) -> None:
    """The stage's own step."""
    import torch

    from stages.lib.modeling.decoder import MoxinLM
    from stages.lib.modeling.processor import prepare
    from stages.lib.modeling.weights import StoredWeights
    from stages.lib.training.backends.base import WindowBatch
    from stages.lib.training.backends.factory import make_backend
    from stages.lib.training.parallel_dims import ParallelDims
    from stages.pretrain.spec import PretrainConfig

    prepare(threads)
    count, length = SIZES[size]["batch"], SIZES[size]["length"]
    config = PretrainConfig(
        shape=shape_of(size), sequence_length=length, tokens=count * length * STEPS, global_batch_size=count,
        micro_batch_size=count, dropout=dropout, precision="fp32", threads=threads, warmup_steps=0, weight_decay=DECAY,
        grad_clip=CLIP, device="cpu",
    )  # fmt: skip
    with torch.device("meta"):
        model = MoxinLM(shape_of(size), SIZES[size]["vocab"], dropout)
    backend = make_backend(model, StoredWeights(folder), config, ParallelDims(torch.device("cpu")))
    predicted = count * (length - 1)
    for number, ids in enumerate(windows(size)):
        meter.start()
        sequences = torch.arange(number * count, (number + 1) * count)
        update = backend.step(
            [WindowBatch(torch.from_numpy(ids), None, sequences, predicted)], RATE, predicted, lambda update: True
        )
        meter.stop()
        meter.losses.append(update.loss / predicted)


def _plain(meter: Meter, size: str, dropout: float, folder: Path) -> None:
    """The same decoder on PyTorch's own operators."""
    import torch
    import torch.nn.functional as F

    from stages.lib.modeling import decoder, kernels
    from stages.lib.modeling.hf_checkpoint import load_model

    decoder.fused = kernels.fused = lambda x: False
    model = load_model(folder, dropout)

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    _loop(meter, model, loss_of, size)


def _transformers(size: str, dropout: float, folder: Path, attention: str) -> Any:
    from transformers import MistralForCausalLM

    return MistralForCausalLM.from_pretrained(
        folder, attn_implementation=attention, attention_dropout=dropout, use_cache=False
    )


def _trainer(meter: Meter, size: str, dropout: float, folder: Path, name: str) -> None:
    """transformers' Trainer or TRL's SFTTrainer, timed by its own callbacks, without shuffling."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **more: Any) -> None:
            meter.start()

        def on_step_end(self, *args: Any, **more: Any) -> None:
            meter.stop()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            if logs and "loss" in logs:
                meter.losses.append(float(logs["loss"]))

    rows = windows(size).reshape(-1, SIZES[size]["length"])
    settings: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(), "per_device_train_batch_size": SIZES[size]["batch"], "num_train_epochs": 1,
        "learning_rate": RATE, "lr_scheduler_type": "constant", "weight_decay": DECAY, "max_grad_norm": CLIP,
        "adam_beta2": 0.95, "optim": "adamw_torch_fused", "use_cpu": True, "report_to": [], "save_strategy": "no",
        "logging_steps": 1, "disable_tqdm": True, "bf16": False,
    }  # fmt: skip
    model = _transformers(size, dropout, folder, "eager" if name == "trainer-eager" else "sdpa")
    if name == "trl":
        from tokenizers import Tokenizer, models
        from trl.trainer.sft_config import SFTConfig
        from trl.trainer.sft_trainer import SFTTrainer

        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, "<pad>")),
            pad_token="<pad>",
            eos_token="</s>",
        )
        data = Dataset.from_dict({"input_ids": rows.tolist()})
        config = SFTConfig(
            **settings, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}, gradient_checkpointing=False
        )

        class InOrder(SFTTrainer):
            def _get_train_sampler(self, *args: Any) -> Any:
                return SequentialSampler(data)

        InOrder(model=model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()]).train()
    else:
        data = Dataset.from_dict({"input_ids": rows.tolist(), "labels": rows.tolist()}).with_format("torch")

        class Ordered(Trainer):
            def _get_train_sampler(self, *args: Any) -> Any:
                return SequentialSampler(data)

        Ordered(model=model, args=TrainingArguments(**settings), train_dataset=data, callbacks=[Clock()]).train()


def measure(name: str, size: str, dropout: float, folder: Path, threads: int) -> dict[str, Any]:
    """One contender, in this process."""
    import torch

    torch.set_num_threads(threads)
    meter = Meter()
    meter.start()
    meter.stop()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    meter.seconds.clear()
    if name == "moxin":
        _moxin(meter, size, dropout, folder, threads)
    elif name == "plain":
        _plain(meter, size, dropout, folder)
    elif name.startswith("loop"):
        if name.endswith("kept"):
            from stages.lib.modeling.processor import prepare

            prepare(threads)
        model = _transformers(size, dropout, folder, "sdpa")
        _loop(meter, model, lambda ids: model(input_ids=ids, labels=ids).loss, size)
    else:
        _trainer(meter, size, dropout, folder, name)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": min(meter.seconds[WARM:]), "losses": meter.losses, "memory": memory * 1024, "peak": meter.peak}


def child(name: str, size: str, dropout: float, folder: Path, threads: int) -> dict[str, Any]:
    """One contender, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.training", "--child", name, "--size", size, "--dropout", str(dropout)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "--folder", str(folder), "--threads", str(threads)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(size: str, dropout: float, rounds_by_name: dict[str, list[dict[str, Any]]], threads: int) -> str:
    """The Markdown table of one size and dropout. Raises SystemExit when curves differ that must not."""
    config, shape = SIZES[size], shape_of(size)
    tokens = config["batch"] * config["length"]
    flops = tokens * shape.flops_per_token(config["vocab"], config["length"])
    first = next(iter(rounds_by_name.values()))[0]["losses"]
    lines = [
        (
            f"**{size}**, {shape.parameters(config['vocab']) / 1e6:.2f} M parameters, {config['batch']} x"
            f" {config['length']} tokens, dropout {dropout}, {threads} thread(s)"
        ),
        "",
        (
            "| | tokens/s | GFLOP/s | of the peak beside it | memory of the steps, MB | last loss | largest difference"
            " of the curve |"
        ),
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, rounds in rounds_by_name.items():
        best = min(rounds, key=lambda r: r["seconds"])
        gap = max(abs(a - b) for a, b in zip(best["losses"], first, strict=True))
        if not dropout and gap > TOLERANCE:
            raise SystemExit(f"{name}, {size}: its loss curve differs by {gap:.4f} from {next(iter(rounds_by_name))}'s")
        lines.append(
            f"| {CONTENDERS[name]} | {tokens / best['seconds']:,.0f} | {flops / best['seconds'] / 1e9:.0f} |"
            f" {flops / best['seconds'] / best['peak']:.0%} of {best['peak'] / 1e9:.0f} |"
            f" {min(r['memory'] for r in rounds) / 1e6:,.0f} | {best['losses'][-1]:.4f} | {gap:.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run all rounds and print the tables, or be one contender."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--child", choices=CONTENDERS)
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--dropout", type=float, action="append")
    parser.add_argument("--only", choices=CONTENDERS, action="append")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.size[0], options.dropout[0], options.folder, options.threads)))
        return
    with tempfile.TemporaryDirectory() as root:
        for size in options.size or SIZES:
            folder = folder_of(size, Path(root))
            for dropout in options.dropout or [0.1, 0.0]:
                rounds_by_name: dict[str, list[dict[str, Any]]] = {name: [] for name in options.only or CONTENDERS}
                for _ in range(options.rounds):
                    for name, rounds in rounds_by_name.items():
                        rounds.append(child(name, size, dropout, folder, options.threads))
                print(table(size, dropout, rounds_by_name, options.threads), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
