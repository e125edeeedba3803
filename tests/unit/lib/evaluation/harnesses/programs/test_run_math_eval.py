from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from stages.lib.evaluation.harnesses.programs import run_math_eval

STANDIN = {
    "python_executor.py": """
class PythonExecutor:
    def batch_apply(self, programs):
        for program in programs:
            exec(program)
    def apply(self, program):
        exec(program)
""",
    "math_eval.py": """
import sys
from vllm import LLM, SamplingParams
from python_executor import PythonExecutor
if __name__ == "__main__":
    executor = PythonExecutor()
    print(sys.argv[1:], executor.batch_apply(sys.argv[1:]), executor.apply(sys.argv[1]))
""",
}
"""Files with the names and the imports of upstream's; tests/upstream runs the real ones."""


def test_programs_of_a_model_are_counted_and_not_run(tmp_path: Path) -> None:
    source, record = tmp_path / "evaluation", tmp_path / "record.json"
    source.mkdir()
    for name in run_math_eval.FILES:
        (source / name).write_text("")
    for name, text in STANDIN.items():
        (source / name).write_text(text)
    trace = tmp_path / "trace"
    programs = [f"open({str(trace)!r}, 'w')", "1 / 0"]
    done = subprocess.run(
        [sys.executable, run_math_eval.__file__, str(record), *programs],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run_math_eval.REFUSED in done.stdout
    assert not trace.exists()
    kept = json.loads(record.read_text())
    assert kept == {"files_sha256": run_math_eval.digest(source), "programs_not_run": 3}
    (source / "grader.py").write_text("# another grader")
    assert run_math_eval.digest(source) != kept["files_sha256"]


def test_a_python_without_the_program_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, run_math_eval.__file__, str(tmp_path / "record.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "math_eval is not on the path of this Python: see containers/qwen25-math" in done.stderr
