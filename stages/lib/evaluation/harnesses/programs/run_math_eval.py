"""Run Qwen2.5-Math's evaluation (`math_eval.py`, unchanged) in its own environment, with what is needed around it.

    python run_math_eval.py RECORD [its options]
    python run_math_eval.py RECORD --files              # only say which files it would run

It runs Python that a model wrote whenever an answer ends in a code block. Nothing that a model wrote is run here: such
an answer gets a note instead, and is counted. It imports vLLM even where `--use_vllm` is not given: where vLLM is not
installed, an empty module stands for it, and `--use_vllm` fails. Which files ran is written to RECORD, a JSON file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import runpy
import sys
import types
from pathlib import Path
from typing import Any

FILES = ("math_eval.py", "evaluate.py", "grader.py", "parser.py", "data_loader.py", "utils.py")
"""What decides about a score."""
REFUSED = "programs are not run here"


def digest(folder: Path) -> str:
    """SHA-256 over the files that decide about a score."""
    whole = hashlib.sha256()
    for name in FILES:
        whole.update(f"{name} {hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


def main(record: Path) -> None:
    """Run the program, then write RECORD."""
    module = importlib.util.find_spec("math_eval")
    if module is None or module.origin is None:
        raise SystemExit("ImportError: math_eval is not on the path of this Python: see containers/qwen25-math")
    folder = Path(module.origin).parent
    if sys.argv[1:] == ["--files"]:
        record.write_text(json.dumps({"files_sha256": digest(folder)}) + "\n")
        return
    sys.path.insert(0, str(folder))
    if importlib.util.find_spec("vllm") is None:
        empty: Any = types.ModuleType("vllm")
        empty.LLM = empty.SamplingParams = None
        sys.modules["vllm"] = empty
    executor: Any = importlib.import_module("python_executor")
    refused = 0

    def batch_apply(self: Any, programs: list[str]) -> list[tuple[str, str]]:
        nonlocal refused
        refused += len(programs)
        return [("", REFUSED) for _ in programs]

    executor.PythonExecutor.batch_apply = batch_apply
    executor.PythonExecutor.apply = lambda self, program: batch_apply(self, [program])[0]
    runpy.run_path(str(folder / "math_eval.py"), run_name="__main__")
    record.write_text(json.dumps({"files_sha256": digest(folder), "programs_not_run": refused}) + "\n")


if __name__ == "__main__":
    path = Path(sys.argv.pop(1))
    main(path)
