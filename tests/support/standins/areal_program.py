"""Stands in for AReaL's interpreter: `run_areal.py FOLDER` reads settings and rows, asks the verifier through the
reward function as AReaL does (by its import path, with the row's columns), prints steps, keeps checkpoints as
run_areal.py does, goes on from them, leaves weights.

STANDIN: ok, crash, or `<folder of a phase>:<step>` to wait after.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

MODE = os.environ.get("STANDIN", "ok")
RECORD = Path(os.environ["STANDIN_RECORD"])
REWARD = "stages.lib.engines.programs.reward.verified"


def rewards(rows: list[dict[str, Any]]) -> list[float]:
    """Of a right and of a wrong response to each prompt."""
    module, _, name = REWARD.rpartition(".")
    function = getattr(importlib.import_module(module), name)
    said = [(row, f"<think>\nso\n</think>\n\\boxed{{{answer}}}</s>") for row in rows for answer in (row["answer"], "x")]
    return [function("prompt", text, [5], [6], **row) for row, text in said]


def stats(step: int, found: list[float]) -> dict[str, float]:
    """As AReaL names them."""
    right = sum(reward > 0 for reward in found)
    values = {
        "update/actor_loss/avg": 0.5 / step,
        "update/lr": 1e-6,
        "update/grad_norm": 0.15,
        "task_reward/avg": sum(found) / len(found),
    }
    values |= {
        "seq_len/avg": 30.0,
        "prompt_len/avg": 18.0,
        "correct_n_seqs": right,
        "n_seqs": len(found),
        "kl_rewards/avg": -1e-5,
    }
    return {f"ppo_actor/{name}": value for name, value in values.items()}


def main(folder: Path) -> None:
    settings = json.loads((folder / "config.yaml").read_text())
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    size = settings["train_dataset"]["batch_size"]
    steps, left = divmod(len(rows), size)
    if left:
        sys.exit(f"ValueError: {len(rows)} rows are no whole batches of {size}")
    kept = folder / "checkpoints"
    tracker = kept / "latest_checkpointed_iteration.txt"
    done = int(tracker.read_text()) if tracker.is_file() else 0
    with open(RECORD, "a", encoding="utf-8") as stream:
        stream.write(json.dumps({"settings": settings, "rows": rows, "resumed": done}) + "\n")
    for step in range(done + 1, steps + 1):
        values = stats(step, rewards(rows[(step - 1) * size : step * size]))
        print(f"(AReaL) areal-step {json.dumps({'step': step, 'stats': values})}", flush=True)
        if MODE == "crash":
            sys.exit("RuntimeError: CUDA is not there")
        if step % settings["recover"]["freq_steps"] == 0 or step == steps:
            (kept / f"global_step_{step}" / "recover_checkpoint").mkdir(parents=True)
            (kept / f"global_step_{step}" / "recover_checkpoint" / "weights.distcp").write_text(
                settings["actor"]["path"]
            )
            tracker.write_text(str(step))
            if f"{folder.name}:{step}" == MODE:
                time.sleep(300)
    from safetensors.torch import load_file, save_file

    (folder / "model").mkdir()
    start = load_file(Path(settings["actor"]["path"]) / "model.safetensors")
    save_file({name: tensor + 0.5 for name, tensor in start.items()}, folder / "model" / "model.safetensors")


if __name__ == "__main__":
    if Path(sys.argv[1]).name != "run_areal.py":
        sys.exit(f"RuntimeError: no such program: {sys.argv[1:]}")
    main(Path(sys.argv[2]))
