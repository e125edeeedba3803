"""What `run_open_instruct.py` repairs, on accelerate's own `Accelerator`, with a program that does what upstream's do
wrong.

Facts of upstream (commit d208aa371976) that the program below repeats: `args` is a global of the `__main__` block
alone, and dpo_tune_cache.py's `get_cache_ref_logprobs` reads it; the folder is named after a clock; the reference is
computed after a checkpoint is loaded; `skip_first_batches` is called in every epoch of a resumed run. The real
programs: test_open_instruct_run.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.lib.engines import open_instruct
from stages.lib.engines.programs import run_open_instruct

PROGRAM = """
import json, os, sys, time
from types import SimpleNamespace
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from torch.utils.data import DataLoader


def get_cache_ref_logprobs(model, loader, accelerator, average, checkpoint, resume_step, epochs, forward):
    sides = [], []
    for epoch in epochs:
        loader.set_epoch(epoch)
        batches = list(loader if not checkpoint else accelerator.skip_first_batches(loader, resume_step))
        for sign, side in zip((1, -1), sides):
            side.append([sign * model * batch.float() * (2 if args.doubled else 1) for batch in batches])
    return sides


def main(args):
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    args.output_dir = os.path.join(args.output_dir, f"x__{int(time.time())}")
    set_seed(1)
    loader = accelerator.prepare(DataLoader(torch.arange(1, 17), batch_size=args.micro, shuffle=True))
    names = os.listdir(args.output_dir) if os.path.isdir(args.output_dir) else ()
    done = [name for name in names if name.startswith("step_")]
    checkpoint = done[0] if done else None
    position = int(checkpoint[5:]) // args.micro if checkpoint else 0
    model = 100.0 if checkpoint else 1.0  # what is loaded is no longer the parent
    start, skip = divmod(position, len(loader))
    skipped, epochs = skip if checkpoint else None, range(start, 2)
    chosen, rejected = get_cache_ref_logprobs(model, loader, accelerator, True, checkpoint, skipped, epochs, None)
    for epoch in range(start, 2):
        loader.set_epoch(epoch)
        for step, batch in enumerate(accelerator.skip_first_batches(loader, skip) if checkpoint else loader):
            logps = {"chosen": chosen[epoch][step].tolist(), "rejected": rejected[epoch][step].tolist()}
            row = {"epoch": epoch, "rows": batch.tolist(), **logps}
            print("ROW", json.dumps(row))
            position += 1
            if position * args.micro in args.save:
                accelerator.save_state(os.path.join(args.output_dir, f"step_{position * args.micro}"))
    print("CLOCK", time.time())


if __name__ == "__main__":
    args = SimpleNamespace(**json.loads(sys.argv[1]))
    main(args)
"""


def call(root: Path, **args: Any) -> tuple[list[dict[str, Any]], float]:
    """Run it as the engine's interpreter does. Returns what each micro-batch was and was compared with, and its clock
    at the end.
    """
    for package, text in {
        "open_instruct/dpo_tune_cache.py": PROGRAM,
        "deepspeed/runtime/fp16/loss_scaler.py": "class LossScaler: ...",
        "deepspeed/runtime/zero/config.py": "class ZeroStageEnum: ...",
    }.items():
        (root / "site" / package).parent.mkdir(parents=True, exist_ok=True)
        (root / "site" / package).write_text(text)
    given = json.dumps({"output_dir": str(root / "output"), "doubled": True, "micro": 2, "save": [], **args})
    words = [sys.executable, str(open_instruct.PROGRAM), "dpo_tune_cache", given]
    done = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": str(root / "site")}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    return [json.loads(x[4:]) for x in lines if x.startswith("ROW ")], float(
        next(x[6:] for x in lines if x.startswith("CLOCK "))
    )


def flat(rows: list[dict[str, Any]]) -> list[tuple[int, float, float]]:
    """(row, chosen, rejected), in the order of training."""
    return [each for row in rows for each in zip(row["rows"], row["chosen"], row["rejected"], strict=True)]


def test_a_resumed_run_sees_what_is_left_and_compares_it_with_the_parent(tmp_path: Path) -> None:
    whole, clock = call(tmp_path, save=[6, 22, 24])
    assert abs(clock - time.time()) < 600  # it tells the time, but for the first reading:
    output = tmp_path / "output" / "x__0"
    assert sorted(path.name for path in (tmp_path / "output" / "ready").iterdir()) == [
        "step_24"
    ]  # nobody took the older ones
    seen = flat(whole)
    assert sorted(row for row, _, _ in seen[:16]) == sorted(row for row, _, _ in seen[16:]) == list(range(1, 17))
    assert all((chosen, rejected) == (2.0 * row, -2.0 * row) for row, chosen, rejected in seen)
    for position, micro in (
        (6, 2),
        (22, 2),
        (24, 4),
    ):  # in the first epoch, in the second, there with another micro-batch
        for name in ("step_6", "step_22", "step_24"):
            (output / name).rename(output / f"away_{name}") if (output / name).exists() else None
        (output / f"away_step_{position}").rename(output / f"step_{position}")
        rows, _ = call(tmp_path, micro=micro)
        assert flat(rows) == seen[position:]


def test_a_checkpoint_that_was_taken_is_not_removed(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        checkpoint = tmp_path / "x__1__0" / f"step_{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "states.pt").write_text(str(step))
        run_open_instruct.offer(checkpoint)
        if step == 2:
            (tmp_path / "ready" / "step_2").rename(tmp_path / "taken")
    assert [path.name for path in (tmp_path / "ready").iterdir()] == ["step_6"]
    assert (tmp_path / "taken" / "states.pt").read_text() == "2"


@pytest.mark.parametrize(("ranks", "rows"), [(1, 3), (2, 1), (2, 3), (4, 2)])
def test_ranks_find_their_share_of_the_reference(ranks: int, rows: int) -> None:
    """Dealt out as accelerate's `BatchSamplerShard` deals micro-batches, after another size of micro-batch."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler, SequentialSampler

    def deal(size: int, rank: int) -> torch.Tensor:
        sampler = BatchSampler(SequentialSampler(range(24)), size, drop_last=False)
        return torch.tensor(
            [list(BatchSamplerShard(sampler, ranks, rank, split_batches=False))]
        )  # [1 epoch, micro-batches, rows]

    kept = [deal(2 if ranks < 4 else 1, rank) for rank in range(ranks)]
    for rank in range(ranks):
        assert torch.equal(run_open_instruct.dealt(kept, rank, rows), deal(rows, rank))
