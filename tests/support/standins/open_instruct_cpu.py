"""What differs for open-instruct on a machine without a GPU, and with another torch than its own. Nothing of the
programs does.

As interpreter (`-m accelerate.commands.launch ...`): flash attention off, and this file put before the program.
As program: DeepSpeed drops an empty group of parameters, and torch 2.13's schedulers want as many rates as groups;
2.6's (upstream's) did not. Steps are slowed down, so that a test can stop the run in the middle.
"""

from __future__ import annotations

import builtins
import os
import runpy
import sys
import time
from typing import Any


def launch(words: list[str]) -> None:
    """Become accelerate's launcher."""
    program = next(number for number, word in enumerate(words) if word.endswith("run_open_instruct.py"))
    words[words.index("--use_flash_attn") + 1] = "False"
    os.execv(sys.executable, [sys.executable, *words[:program], os.path.abspath(__file__), *words[program:]])


def run() -> None:
    """Run the program, slowly."""
    del sys.path[0]  # this folder has an `open_instruct`, too
    import accelerate
    from torch.optim import lr_scheduler

    lr_scheduler.zip = lambda *columns, strict=False: builtins.zip(*columns, strict=False)  # type: ignore[attr-defined]

    class Slow(accelerate.Accelerator):
        def backward(self, loss: Any, **kwargs: Any) -> None:
            super().backward(loss, **kwargs)
            time.sleep(0.3)

    accelerate.Accelerator = Slow  # type: ignore[misc]
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    launch(sys.argv[1:]) if sys.argv[1] == "-m" else run()
