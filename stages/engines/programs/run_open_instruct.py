"""Run a training program of open-instruct (commit d208aa371976, unchanged) with one repair, in open-instruct's own interpreter.

    run_open_instruct.py finetune|dpo_tune_cache OPTIONS...

The program names its folder `<output_dir>/<exp_name>__<seed>__<seconds since 1970>`. Each rank reads that clock by itself, so ranks that
start in different seconds write into different folders; and a second launch never finds the first one's checkpoints, because the folder
is new and `--resume_from_checkpoint` is looked at only when there is no folder. Here the first reading is 0: one folder, and a known one.
"""

from __future__ import annotations

import importlib
import sys
import time
from typing import Any


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


def main() -> None:
    """Parse with the program's own parser and run it."""
    name = sys.argv.pop(1)
    program: Any = importlib.import_module(f"open_instruct.{name}")
    program.time = Clock()
    parser = program.ArgumentParserPlus((program.FlatArguments, program.TokenizerConfig))
    program.main(*parser.parse_args_into_dataclasses())


if __name__ == "__main__":
    main()
