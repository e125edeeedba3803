"""One step of AReaL 1.0.4's FSDP actor in this process, on the CPU, from the engine's own settings. In AReaL's
interpreter:

areal_step.py FOLDER        config.yaml (stages.lib.engines.areal.settings) and trajectories.json -> result.json
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch


def trajectory(row: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A response in AReaL's form. row: prompt and response ids, reward."""
    prompt, response = row["prompt"], row["response"]
    return {
        "input_ids": torch.tensor([prompt + response]),
        "loss_mask": torch.tensor([[0] * len(prompt) + [1] * len(response)]),
        "logprobs": torch.zeros(1, len(prompt) + len(response)),
        "versions": torch.tensor([[-1] * len(prompt) + [0] * len(response)]),
        "attention_mask": torch.ones(1, len(prompt) + len(response), dtype=torch.bool),
        "rewards": torch.tensor([row["reward"]]),
    }


def reference(model: Any, row: dict[str, Any], temperature: float) -> list[float]:
    """Log-probabilities of a response by transformers, without packing."""
    ids = torch.tensor([row["prompt"] + row["response"]])
    with torch.no_grad():
        scores = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0, :-1].float() / temperature, -1)
    every = scores.gather(-1, ids[0, 1:, None]).squeeze(-1)
    return every[len(row["prompt"]) - 1 :].tolist()


def main(folder: Path) -> None:
    from areal.api import FinetuneSpec  # type: ignore[import-not-found]
    from areal.api.alloc_mode import ParallelStrategy  # type: ignore[import-not-found]
    from areal.api.cli_args import PPOConfig, load_expr_config  # type: ignore[import-not-found]
    from areal.engine.fsdp_engine import FSDPPPOActor  # type: ignore[import-not-found]
    from areal.utils import stats_tracker  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM

    from stages.lib.engines.programs import areal_worker

    config, _ = load_expr_config(
        ["--config", str(folder / "config.yaml"), "actor.dtype=float32", "+actor.attn_impl=sdpa"], PPOConfig
    )
    if os.environ.get("REPAIR") == "1":
        areal_worker.repair()
    rows = json.loads((folder / "trajectories.json").read_text())
    plain = AutoModelForCausalLM.from_pretrained(config.actor.path, dtype=torch.float32).eval()
    wanted = [reference(plain, row, config.actor.temperature) for row in rows]
    actor = FSDPPPOActor(config.actor)
    actor.create_process_group(ParallelStrategy(data_parallel_size=1))
    actor.initialize(None, FinetuneSpec(total_train_epochs=1, dataset_size=len(rows), train_batch_size=len(rows)))
    batch = [trajectory(row) for row in rows]
    found = actor.compute_logp(batch)
    logps = []
    for row, one, logp in zip(rows, batch, found, strict=True):
        one["prox_logp"] = logp
        start = len(row["prompt"]) - 1
        logps.append(logp[0, start : start + len(row["response"])].tolist())
    advantages = actor.compute_advantages(batch)
    actor.ppo_update(advantages)
    stats = {name: float(value) for name, value in stats_tracker.export_all().items()}
    result = {
        "wanted": wanted,
        "logps": logps,
        "advantages": [a["advantages"][0][a["loss_mask"][0].bool()].tolist() for a in advantages],
        "final": sorted({float(a["tot_rewards"].sum()) for a in advantages}),
        "stats": stats,
    }
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    main(Path(sys.argv[1]))
