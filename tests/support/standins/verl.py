"""Stands in for the interpreter of verl's environment: `verl.trainer.main_ppo` with Hydra overrides, and
`verl.model_merger`.

It reads the Parquet, calls the reward function that it is told of as verl does (by path, from a thread), logs as verl's
console logger, keeps checkpoints as verl does, and resumes from its tracker file. STANDIN: ok, crash, or `<folder of a
phase>:<step>` to wait after.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

MODE = os.environ.get("STANDIN", "ok")
RECORD = Path(os.environ["STANDIN_RECORD"])


def refuse(why: str) -> None:
    print(f"hydra.errors.ConfigCompositionException: {why}", file=sys.stderr)
    sys.exit(1)


def scores(settings: dict[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The reward of a right and of a wrong response to each prompt of a batch, from threads of an executor."""
    name = "reward.custom_reward_function"
    spec = importlib.util.spec_from_file_location("reward", settings[f"{name}.path"])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    keywords = {k.rpartition(".")[2]: v for k, v in settings.items() if k.startswith(f"+{name}.reward_kwargs.")}

    def one(row: dict[str, Any], right: bool) -> dict[str, float]:
        truth = row["reward_model"]["ground_truth"]
        said = f"<think>\nso\n</think>\n\\boxed{{{truth if right else 'x'}}}"
        return getattr(module, settings[f"{name}.name"])(
            data_source=row["data_source"],
            solution_str=said,
            ground_truth=truth,
            extra_info=row["extra_info"],
            **keywords,
        )

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda pair: one(*pair), [(row, right) for row in rows for right in (True, False)]))


def train(words: list[str]) -> None:
    settings = {name: json.loads(value) for name, _, value in (w.partition("=") for w in words)}
    known = json.loads((Path(__file__).parents[2] / "data" / "verl_settings.json").read_text())["settings"]
    for name in settings:
        if not name.startswith("+") and name not in known:
            refuse(f"Could not override '{name}'. Key '{name}' is not in struct")
    rows = pq.read_table(settings["data.train_files"]).to_pylist()
    size, steps = settings["data.train_batch_size"], settings["trainer.total_training_steps"]
    if len(rows) != size * steps or pq.read_table(settings["data.val_files"]).num_rows < 1:
        refuse(f"{len(rows)} rows are not {steps} batches of {size}")
    folder = Path(settings["trainer.default_local_dir"])
    tracker = folder / "latest_checkpointed_iteration.txt"
    done = int(tracker.read_text()) if tracker.is_file() else 0
    with open(RECORD, "a", encoding="utf-8") as stream:
        stream.write(json.dumps({"settings": settings, "rows": rows, "resumed": done}) + "\n")
    for step in range(done + 1, steps + 1):
        found = scores(settings, rows[(step - 1) * size : step * size])
        mean = sum(f["score"] for f in found) / len(found)
        print(
            f"(TaskRunnerV1 pid=7) step:{step} - actor/pg_loss:{0.5 / step} - actor/grad_norm:np.float64(1.5e-01) -"
            f" actor/kl_loss:0.001 - actor/lr:1e-06 - critic/score/mean:{mean} - response_length/mean:12.0 -"
            " response_length/clip_ratio:0.25 - training/epoch:0",
            flush=True,
        )
        if MODE == "crash":
            print("ray.exceptions.RayTaskError(ValueError): ray::TaskRunnerV1.run()\nValueError: no", flush=True)
            sys.exit(1)
        if step % settings["trainer.save_freq"] == 0 or step == steps:
            actor = folder / f"global_step_{step}" / "actor"
            actor.mkdir(parents=True)
            (actor / "model_world_size_1_rank_0.pt").write_text(settings["actor_rollout_ref.model.path"])
            (folder / f"global_step_{step}" / "data.pt").write_text("position")
            tracker.write_text(str(step))
            if f"{folder.parent.name}:{step}" == MODE:
                time.sleep(300)


def merge(words: list[str]) -> None:
    """Weights of what the run began from, plus one half, in bf16."""
    from safetensors.torch import load_file, save_file

    options = dict(zip(words[::2], words[1::2], strict=True))
    start = Path((Path(options["--local_dir"]) / "model_world_size_1_rank_0.pt").read_text())
    target = Path(options["--target_dir"])
    target.mkdir()
    save_file(
        {k: (v.float() + 0.5).bfloat16() for k, v in load_file(start / "model.safetensors").items()},
        target / "model.safetensors",
    )
    (target / "config.json").write_text("{}")


if __name__ == "__main__":
    if sys.argv[1:3] == ["-m", "verl.trainer.main_ppo"]:
        train(sys.argv[3:])
    elif sys.argv[1:6] == ["-m", "verl.model_merger", "merge", "--backend", "fsdp"]:
        merge(sys.argv[6:])
    else:
        refuse(f"no such program: {sys.argv[1:]}")
