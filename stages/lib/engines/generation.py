"""Answers at length by the engine that trains: vLLM of verl and open-instruct, SGLang of AReaL, in their own
environments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from stages.core.context import Context
from stages.core.interpreters import interpreter
from stages.lib.engines import process
from stages.lib.engines.checkpoint_conversion import prepare_parent, write_json
from stages.lib.formats import vocabulary

PROGRAM = Path(__file__).parent / "programs" / "generate_answers.py"
GENERATORS = {"verl": "vllm", "open-instruct": "vllm", "areal": "sglang"}
"""What an engine's environment writes with."""
PROGRESS = "answers-written "
"""What the program begins a line with, before the number of answers since the last one."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    max_new_tokens: int
    temperature: float
    """0: greedy."""
    seed: int


def generate(
    ctx: Context[Any],
    model: Path,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    on_answers: Callable[[int], None],
) -> list[list[int]]:
    """Token ids that follow each prompt, up to and with </s>, written on all GPUs of this node. model: a folder;
    on_answers: called with the number of prompts that were answered since.

    Raises what `process.run` raises.
    """
    engine = ctx.config.engine
    python = interpreter(ctx.node, engine, "= 'trl'")
    folder = Path(mkdtemp(prefix="answers-", dir=ctx.scratch))
    prepare_parent(model, folder / "model")
    request = {
        "model": str(folder / "model"),
        "prompts": [list(ids) for ids in prompts],
        "max_new": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        "stop": vocabulary.EOS_ID,
        "context": max(map(len, prompts)) + sampling.max_new_tokens,
        "processes": max(1, min(ctx.nproc_per_node, len(prompts))),
    }
    write_json(folder / "request.json", request)

    def read(line: str) -> None:
        _, mark, count = line.partition(PROGRESS)
        if mark and count.strip().isdigit():
            on_answers(int(count))

    process.run(
        ctx,
        GENERATORS[engine],
        [python, str(PROGRAM), GENERATORS[engine], str(folder)],
        env=process.environment(folder),
        on_line=read,
    )
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
