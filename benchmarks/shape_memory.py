"""The memory that a `shape` rehearsal of `pretrain` measures on this machine's processor against the plan's formula
(flows/pretraining_memory.py), at two widths.

    python -m benchmarks.shape_memory

Each run is a process of its own: steps as a `shape` rehearsal takes them, float32, without dropout, no checkpoint
before the last step. Measured is the most that the process held (VmHWM) until its last step, less what it held before
the model was made. glibc gives memory back late; MALLOC_ARENA_MAX and the thresholds are left as they are.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.memory import peak_kib
from benchmarks.orchestration import machine
from flows import pretraining_memory
from stages.core.artifacts import Tokenizer, TokenShards
from stages.core.files import ROOT
from stages.core.shrinking import Rehearsal, shrunk
from stages.core.testing import LocalContext, local_artifact
from stages.lib.formats import vocabulary as formats
from stages.lib.formats.shards import ShardWriter
from stages.lib.modeling.shape import ModelShape
from stages.pretrain.spec import PretrainConfig

VOCABULARY, LENGTH = 8000, 512
SHAPES = {
    "768": ModelShape(layers=6, hidden=768, intermediate=2688, heads=6, kv_heads=2, head_dim=128, window=None),
    "1536": ModelShape(layers=3, hidden=1536, intermediate=5376, heads=12, kv_heads=4, head_dim=128, window=None),
}
"""Of the 7B's proportions."""


def config(width: str, threads: int) -> PretrainConfig:
    """As a rehearsal at level `shape` has it."""
    batch: dict[str, Any] = {
        "global_batch_size": 8,
        "micro_batch_size": 2,
        "sequence_length": LENGTH,
        "tokens": 1 << 30,
    }
    long = PretrainConfig(
        shape=SHAPES[width], device="cpu", precision="fp32", dropout=0.0, eval_windows=0, threads=threads,
        export_moments=False, **batch,
    )  # fmt: skip
    small = shrunk(long, Rehearsal("shape"))
    steps = 2 * small.global_batch_size * LENGTH  # from the second on nothing is new
    return small.model_copy(update={"checkpoint_every": 1000, "tokens": steps})


def child(width: str, threads: int) -> dict[str, Any]:
    """Train, and tell what it took."""
    from stages.lib.training.trainer import Trainer
    from stages.pretrain import run as stage

    given, steps = config(width, threads), list[int]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = {"tokens": [shards(folder / "tokens", given)], "tokenizer": [vocabulary(folder / "tokenizer")]}
        before = resident_kib()
        ctx = LocalContext(folder / "run", given, inputs)

        def ended(self: Trainer) -> None:
            steps.append(peak_kib())

        Trainer._save = ended  # type: ignore[method-assign]  # the checkpoint is not of the steps
        try:
            stage.run(ctx)
        except Exception:
            if not steps:
                raise
    return {"measured": (steps[0] - before) * 1024, "before": before * 1024}


def resident_kib() -> int:
    """What this process holds now, KiB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0])


FACETS = {"tokenizer_digest": "digest", "vocab_size": VOCABULARY}


def shards(folder: Path, given: PretrainConfig) -> Any:
    """Windows of random ids, enough for the steps."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    with ShardWriter(folder, LENGTH, VOCABULARY, formats.EOS_ID, "digest") as writer:
        writer.add(rng.integers(3, VOCABULARY, (given.global_batch_size * given.steps, LENGTH), dtype=np.uint16))
    return local_artifact(TokenShards, folder, {**FACETS, "sequence_length": LENGTH})


def vocabulary(folder: Path) -> Any:
    """A tokenizer's folder: the training reads its facets alone."""
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    return local_artifact(Tokenizer, folder, FACETS)


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(child(sys.argv[1], int(sys.argv[2]))))
        return
    for line in machine():
        print(line)
    print("| width | layers | parameters | threads | formula MB | measured MB | off | parts of the formula, MB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for width, threads in itertools.product(SHAPES, (1, 2)):
        shape = SHAPES[width]
        command = [sys.executable, "-m", "benchmarks.shape_memory", width, str(threads)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        one = json.loads(done.stdout.splitlines()[-1])
        parts = pretraining_memory.on_processors(config(width, threads), 1, shape, VOCABULARY)[0]
        total = sum(parts.values())
        named = ", ".join(f"{name} {value / 1e6:.0f}" for name, value in parts.items() if value)
        print(
            f"| {width} | {shape.layers} | {shape.parameters(VOCABULARY) / 1e6:.1f} M | {threads} | {total / 1e6:.0f} |"
            f" {one['measured'] / 1e6:.0f} | {total / one['measured'] - 1:+.1%} | {named} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
