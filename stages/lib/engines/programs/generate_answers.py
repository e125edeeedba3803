"""Write answers to prompts with vLLM or SGLang, in an engine's own interpreter: one process for each GPU, each with its
share.

    generate_answers.py vllm|sglang FOLDER          request.json is there; answers.jsonl will be

request.json: `{model, prompts: [[id, ...], ...], max_new, temperature, seed, stop, context, processes}`. answers.jsonl:
for each prompt, in order, the ids that follow it, up to and with the stop id, or max_new of them. A process is this
program again with its number.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

MEMORY = 0.85
"""Share of a GPU that the engine may take: nothing else is on it."""
CHUNK = 512
"""Prompts that an engine is given at a time: then it says how far it is."""
Answers = list[list[int]]


class Vllm:
    """vLLM's offline engine. A row's draws follow from the seed and its number, whatever is beside it."""

    def __init__(self, request: dict[str, Any]) -> None:
        from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

        self._sampling = SamplingParams
        self._engine = LLM(
            model=request["model"],
            skip_tokenizer_init=True,
            dtype="bfloat16",
            seed=request["seed"],
            max_model_len=request["context"],
            gpu_memory_utilization=MEMORY,
        )

    def write(self, request: dict[str, Any], numbers: list[int]) -> Answers:
        """Ids that follow these prompts."""
        settings = [
            self._sampling(
                temperature=request["temperature"],
                max_tokens=request["max_new"],
                stop_token_ids=[request["stop"]],
                seed=request["seed"] + number,
                detokenize=False,
            )
            for number in numbers
        ]
        prompts = [{"prompt_token_ids": request["prompts"][number]} for number in numbers]
        requests = self._engine.generate(prompts, settings, use_tqdm=False)
        return [
            closed(list(one.outputs[0].token_ids), one.outputs[0].finish_reason == "stop", request["stop"])
            for one in requests
        ]


class Sglang:
    """SGLang's offline engine."""

    def __init__(self, request: dict[str, Any]) -> None:
        import sglang  # type: ignore[import-not-found]

        self._engine = sglang.Engine(
            model_path=request["model"],
            skip_tokenizer_init=True,
            dtype="bfloat16",
            random_seed=request["seed"],
            context_length=request["context"] + 1,  # it refuses a request that would fill its context
            mem_fraction_static=MEMORY,
        )

    def write(self, request: dict[str, Any], numbers: list[int]) -> Answers:
        """Ids that follow these prompts."""
        sampling = {
            "temperature": request["temperature"],
            "max_new_tokens": request["max_new"],
            "stop_token_ids": [request["stop"]],
        }
        outputs = self._engine.generate(
            input_ids=[request["prompts"][number] for number in numbers], sampling_params=sampling
        )
        return [
            closed(list(one["output_ids"]), one["meta_info"]["finish_reason"]["type"] == "stop", request["stop"])
            for one in outputs
        ]


def closed(ids: list[int], ended: bool, stop: int) -> list[int]:
    """An answer with its stop id, which an engine may leave out."""
    return [*ids, stop] if ended and ids[-1:] != [stop] else ids


def work(kind: str, folder: Path, rank: int) -> None:
    """One process: every `processes`-th prompt."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    mine = list(range(rank, len(request["prompts"]), request["processes"]))
    engine = {"vllm": Vllm, "sglang": Sglang}[kind](request)
    with open(folder / f"answers-{rank}.jsonl", "w", encoding="utf-8") as stream:
        for start in range(0, len(mine), CHUNK):
            part = mine[start : start + CHUNK]
            for number, ids in zip(part, engine.write(request, part), strict=True):
                stream.write(json.dumps([number, ids]) + "\n")
            # one write: of print's two, another process's line may come between
            sys.stdout.write(f"answers-written {len(part)}\n")
            sys.stdout.flush()


def devices(count: int) -> list[str]:
    """The GPUs that this program was given, one for each process."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return given.split(",")[:count] if given else [str(number) for number in range(count)]


def main(kind: str, folder: Path) -> int:
    """Start the processes, wait, put the answers in order. Returns the exit status."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    command = [sys.executable, __file__, kind, str(folder)]
    started = [
        subprocess.Popen([*command, str(rank)], env={**os.environ, "CUDA_VISIBLE_DEVICES": device})
        for rank, device in enumerate(devices(request["processes"]))
    ]
    failed = [process.wait() for process in started]
    if any(failed):
        return next(abs(status) for status in failed if status)
    rows = [
        json.loads(line)
        for rank in range(len(started))
        for line in (folder / f"answers-{rank}.jsonl").read_text().splitlines()
    ]
    answers = dict(rows)
    unfinished = folder / "answers.unfinished"
    unfinished.write_text(
        "".join(json.dumps(answers[number]) + "\n" for number in range(len(request["prompts"]))), encoding="utf-8"
    )
    unfinished.rename(folder / "answers.jsonl")
    return 0


if __name__ == "__main__":
    if len(sys.argv) == 4:
        work(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
        sys.stdout.flush()
        os._exit(0)  # an engine's own threads and processes may keep this one; the stage ends what is left of its group
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
