"""Stands in for the interpreter of open-instruct's environment: checks the launch, logs and saves as
run_open_instruct.py does.

What it knows of upstream is recorded in tests/data/open_instruct_options.json (names and types of the options at the
pinned commit). STANDIN says how it ends: ok, crash, oom, nan, wait (after step 3), stubborn (as wait, deaf to SIGTERM),
fewer (leaves out a row by itself).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OPTIONS = json.loads((Path(__file__).parents[2] / "data" / "open_instruct_options.json").read_text())
MODE = os.environ.get("STANDIN", "ok")


def refuse(why: str) -> None:
    """End as argparse does."""
    print(f"run_open_instruct.py: error: {why}", file=sys.stderr)
    sys.exit(2)


def parse(program: str, words: list[str]) -> dict[str, Any]:
    """Options by their recorded types, as transformers' HfArgumentParser reads them."""
    known = OPTIONS[program] | OPTIONS["tokenizer"]
    found: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name = word[2:]
            if name not in known:
                refuse(f"unrecognized arguments: {word}")
            found[name] = []
        else:
            found[name].append(word)
    return {name: convert(name, known[name], values) for name, values in found.items()}


def convert(name: str, kind: str, values: list[str]) -> Any:
    """One option's value."""
    if kind.startswith("list["):
        return values
    if len(values) != 1:
        refuse(f"argument --{name}: expected one argument")
    kind, value = kind.removeprefix("Optional[").removesuffix("]"), values[0]
    if kind == "bool":
        if value not in ("True", "False"):
            refuse(f"argument --{name}: Truthy value expected: got {value}")
        return value == "True"
    try:
        return {"int": int, "float": float}.get(kind, str)(value)
    except ValueError:
        refuse(f"argument --{name}: invalid {kind} value: '{value}'")


def say(text: str) -> None:
    """A line of upstream's log."""
    print(f"11/25/2026 10:00:00 - INFO - __main__ - {text}", file=sys.stderr, flush=True)


def check_launch(words: list[str]) -> tuple[str, list[str], dict[str, str], dict[str, Any]]:
    """`-m accelerate.commands.launch --use_deepspeed --NAME VALUE ... PROGRAM NAME OPTIONS`."""
    number = next((n for n, word in enumerate(words) if Path(word).name == "run_open_instruct.py"), 0)
    if words[:3] != ["-m", "accelerate.commands.launch", "--use_deepspeed"] or not number:
        refuse(f"not a launch: {words[:5]}")
    accelerate = {
        name.removeprefix("--"): value for name, value in zip(words[3:number:2], words[4:number:2], strict=True)
    }
    deepspeed = json.loads(Path(accelerate["deepspeed_config_file"]).read_text())
    if deepspeed["zero_optimization"]["stage"] != 3:
        refuse("not ZeRO-3")
    if any(name.startswith("AWS_") for name in os.environ) or os.environ.get("HF_HUB_OFFLINE") != "1":
        refuse("the environment is not the engine's")
    return words[number + 1], words[number + 2 :], accelerate, deepspeed


def read_rows(program: str, path: str) -> list[dict[str, Any]]:
    """The data, in upstream's schema."""
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    for row in rows:
        turns = [row["messages"]] if program == "finetune" else [row["chosen"], row["rejected"]]
        for messages in turns:
            if messages[-1]["role"] != "assistant" or any(set(m) != {"role", "content"} for m in messages):
                raise ValueError(f"not a conversation: {messages}")
    return rows


def save(parent: Path, output: Path) -> None:
    """Weights in bf16, in two shards of torch's own format."""
    import torch  # two seconds that a failing run does not need
    from safetensors.torch import load_file

    state = load_file(parent / "model.safetensors")
    changed = {name: (tensor + 0.5).bfloat16() for name, tensor in sorted(state.items())}
    half = len(changed) // 2
    for number, part in enumerate((list(changed.items())[:half], list(changed.items())[half:]), 1):
        torch.save(dict(part), output / f"pytorch_model-{number:05d}-of-00002.bin")


def pause() -> None:
    """Wait to be stopped, with a child of its own."""
    if MODE == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "300"])
    Path(os.environ["STANDIN_PIDS"]).write_text(f"{os.getpid()} {child.pid}")
    say("  Step: 1000, LR: 1e-06, Loss: 1.0")
    time.sleep(300)


def main() -> None:
    program, words, accelerate, deepspeed = check_launch(sys.argv[1:])
    options = parse(program, words)
    rows = read_rows(program, options["dataset_mixer_list"][0])
    output = Path(options["output_dir"]) / f"{options['exp_name']}__{options['seed']}__0"
    done = max((int(p.parent.name.removeprefix("step_")) for p in output.glob("step_*/COMPLETED")), default=0)
    batch = (
        options["per_device_train_batch_size"]
        * int(accelerate["num_processes"])
        * options["gradient_accumulation_steps"]
    )
    steps = options["num_train_epochs"] * (len(rows) // batch)
    record = {
        "program": program,
        "options": options,
        "accelerate": accelerate,
        "deepspeed": deepspeed,
        "rows": rows,
        "resumed": done,
    }
    record["config"] = json.loads((Path(options["model_name_or_path"]) / "config.json").read_text())
    record["reference"] = [path.name for path in output.glob("reference/*")]
    Path(os.environ["STANDIN_RECORD"]).write_text(json.dumps(record))
    output.mkdir(parents=True, exist_ok=True)
    if program == "dpo_tune_cache" and not done:
        (output / "reference").mkdir()
        (output / "reference" / "rank_0.pt").write_text("of the parent")
    say(f"  Num examples = {len(rows) - (MODE == 'fewer')}")
    say(f"  Total optimization steps = {steps}")
    for step in range(done + 1, steps + 1):
        loss = "nan" if MODE == "nan" and step == 2 else f"{100 / step}"
        speed = f", TPS: {1000.0 + step}" if program == "finetune" else ""
        say(f"  Step: {step}, LR: {options['learning_rate'] / step}, Loss: {loss}{speed}")
        if step == 3 and MODE in ("crash", "oom"):
            error = (
                "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
                if MODE == "oom"
                else "RuntimeError: NCCL error: unhandled"
            )
            print(
                f"[rank0]: Traceback (most recent call last):\n[rank0]: {error}\nsubprocess.CalledProcessError:"
                " returned 1",
                file=sys.stderr,
            )
            sys.exit(1)
        if step % int(options["checkpointing_steps"]) == 0:
            ready = output.parent / "ready"
            (ready / ".part" / "pytorch_model").mkdir(parents=True)
            (ready / ".part" / "pytorch_model" / "states.pt").write_text(f"states of step {step}")
            (ready / ".part").rename(ready / f"step_{step}")
        if step >= 3 and MODE in ("wait", "stubborn", "nan"):
            pause()
    save(Path(options["model_name_or_path"]), output)


if __name__ == "__main__":
    main()
