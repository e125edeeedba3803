"""Run a training program of open-instruct (commit d208aa371976, unchanged) as `__main__`, with repairs, in its own
interpreter.

    run_open_instruct.py finetune|dpo_tune_cache OPTIONS...

As `__main__`, because dpo_tune_cache.py reads a global that only its `__main__` block sets. The repairs hang on what
the program asks of its `Accelerator`, first of all that one is made, which is when its globals are all there:

- The program names its folder `<output_dir>/<exp_name>__<seed>__<seconds since 1970>`. Each rank reads that clock by
  itself, so ranks
  that start in different seconds write into different folders; and a second launch never finds the first one's
  checkpoints, because the folder is new and `--resume_from_checkpoint` is looked at only when there is no folder. Here
  the first reading is 0: one folder, known.
- After a resume it leaves out the batches that were seen in *every* epoch; only in the first one have they been seen.
- Each rank says COMPLETED when its own part of a checkpoint is written, and the first one removes older checkpoints
  while somebody may
  be reading them. Here a checkpoint of which every rank has written its part is linked into `<output_dir>/ready`, under
  its final name when it is whole. Whoever renames it owns it; those that nobody took are removed when there is a newer
  one.
- torch 2.6 loads nothing but tensors by default, and DeepSpeed 0.15.4's checkpoint holds two objects besides, so that
  it cannot load its
  own. Those two classes, a number of ZeRO and a fixed loss scale, are allowed by name; any other pickle is still
  refused.
- dpo_tune_cache.py loads a checkpoint before it computes the reference's log-probabilities, and would compare a resumed
  model with
  itself. Here they are computed once, before the first step, kept in `<output>/reference`, and read from there by a
  resumed run.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import runpy
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REFERENCE = "reference"
READY = "ready"
ALLOWED = (("deepspeed.runtime.fp16.loss_scaler", "LossScaler"), ("deepspeed.runtime.zero.config", "ZeroStageEnum"))
"""What DeepSpeed's checkpoint in bf16 holds besides tensors and plain values."""
Logps = list[list[Any]]
"""Log-probabilities of a side's answers: by epoch, by micro-batch, a tensor [rows]."""


class Clock:
    """`time`, whose first `time()` is 0 (the folder's name); the later ones measure throughput and are right."""

    def __init__(self) -> None:
        self._named = False

    def time(self) -> float:
        """Seconds since 1970."""
        if self._named:
            return time.time()
        self._named = True
        return 0.0


def offer(checkpoint: Path) -> None:
    """Link a whole checkpoint to where it can be taken from, then remove those that nobody took."""
    ready = checkpoint.parent.parent / READY
    part = ready / f".{checkpoint.name}"
    shutil.copytree(checkpoint, part, copy_function=os.link)
    older = [path for path in ready.iterdir() if not path.name.startswith(".")]
    os.replace(part, ready / checkpoint.name)
    for path in older:
        gone = path.with_name(f".old_{path.name}")
        with contextlib.suppress(FileNotFoundError):  # it was taken
            os.replace(path, gone)
            shutil.rmtree(gone)


def keeping(
    compute: Callable[..., tuple[Logps, Logps]], folder: Callable[[], Path]
) -> Callable[..., tuple[Logps, Logps]]:
    """`get_cache_ref_logprobs` of dpo_tune_cache.py, computed once and kept, for each rank its own part.
    folder: where.
    """

    def cached(*arguments: Any) -> tuple[Logps, Logps]:
        import torch

        # as upstream's function takes them, by position
        model, loader, accelerator, average, checkpoint, resume_step, epochs, forward = arguments
        rank, ranks = accelerator.process_index, accelerator.num_processes
        if checkpoint is None:
            sides = compute(model, loader, accelerator, average, None, None, range(epochs.stop), forward)
            path = folder() / f"rank_{rank}.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(
                [torch.stack([torch.stack(epoch) for epoch in side]) for side in sides], path.with_suffix(".part")
            )
            os.replace(path.with_suffix(".part"), path)
            return sides
        parts = [torch.load(folder() / f"rank_{other}.pt", weights_only=True) for other in range(ranks)]
        chosen, rejected = (
            dealt([part[side] for part in parts], rank, loader.total_batch_size // ranks) for side in range(2)
        )
        return left(chosen, epochs.start, resume_step or 0), left(rejected, epochs.start, resume_step or 0)

    return cached


def dealt(parts: Any, rank: int, rows: int) -> Any:
    """A rank's share [epochs, micro-batches, rows], of what all ranks had of a side, each [epochs, micro-batches, rows
    of a micro-batch then].

    accelerate deals micro-batches out in turn, so that the order of rows is the same whatever the size of a
    micro-batch.
    """
    import torch

    order = torch.stack(parts, dim=2).flatten(1)  # [epochs, rows of an epoch]
    return order.reshape(order.shape[0], -1, len(parts), rows)[:, :, rank]


def left(side: Any, epoch: int, step: int) -> Logps:
    """What a run needs that goes on in an epoch after so many of its micro-batches: the program counts them
    from there.
    """
    return [[] if e < epoch else list(rows[step:] if e == epoch else rows) for e, rows in enumerate(side)]


def repaired(base: type) -> type:
    """An `Accelerator` with the repairs."""

    class Repaired(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._skipped = False
            program: Any = sys.modules["__main__"]
            program.time = Clock()
            if hasattr(program, "get_cache_ref_logprobs"):
                program.get_cache_ref_logprobs = keeping(
                    program.get_cache_ref_logprobs, lambda: Path(program.args.output_dir) / REFERENCE
                )

        def skip_first_batches(self, dataloader: Any, num_batches: int = 0) -> Any:
            """Called at the start of each epoch of a resumed run."""
            if self._skipped:
                return dataloader
            self._skipped = True
            return super().skip_first_batches(dataloader, num_batches)

        def save_state(self, *args: Any, **kwargs: Any) -> Any:
            """Return when every rank has written its part."""
            path = super().save_state(*args, **kwargs)
            self.wait_for_everyone()
            if self.is_main_process:
                offer(Path(path))
            return path

    return Repaired


def main() -> None:
    """Run the program as its own `__main__`."""
    import accelerate
    import torch

    torch.serialization.add_safe_globals([getattr(importlib.import_module(module), name) for module, name in ALLOWED])
    name = sys.argv.pop(1)
    accelerate.Accelerator = repaired(accelerate.Accelerator)  # type: ignore[misc, assignment]
    runpy.run_module(f"open_instruct.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
