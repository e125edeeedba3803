"""Engine `colossalai` in tests: its environment, made once and kept, and a program that trains with it."""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

from stages.core.context import LocalArtifact
from stages.pretrain.spec import PretrainConfig
from tests.support.limits import HANG
from tests.support.paths import ROOT

INSTALL = ROOT / "containers" / "colossalai" / "install.py"


def python() -> Path:
    """The engine's Python: MOXIN_COLOSSALAI_PYTHON, or one made in the user's cache (once: about 40 s and 60 MB from
    the package index).
    """
    if named := os.environ.get("MOXIN_COLOSSALAI_PYTHON"):
        return Path(named)
    made_of = f"{sys.prefix} {INSTALL.with_name('requirements.lock').read_text(encoding='utf-8')}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moxin"
    return runpy.run_path(str(INSTALL))["install"](
        cache / f"colossalai-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"
    )


class Program:
    """`program.py`, started in the engine's environment."""

    def __init__(self) -> None:
        command = [str(python()), "-W", "ignore", "-m", "tests.support.colossal.program"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def train(
        self,
        root: Path,
        size: int,
        made: PretrainConfig,
        inputs: dict[str, list[LocalArtifact]],
        stop: int | None = None,
        scale: float | None = None,
        dies: int = 0,
    ) -> tuple[list[float], str]:
        """Train with `size` processes. Losses that the first told, and how they all ended. dies: the step that kills
        the last one.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        told = {port: [str(many[0].path), dict(many[0].facets)] for port, many in inputs.items()}
        task: dict[str, Any] = {
            "root": str(root), "size": size, "config": made.model_dump(mode="json"), "inputs": told, "stop": stop,
            "scale": scale,
            "dies": dies,
        }  # fmt: skip
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        answer = json.loads(
            self._process.stdout.readline()
            or '{"outcomes": ["the program ended"], "metrics": [], "stats": {}, "held": []}'
        )
        self.stats: dict[str, Any] = answer["stats"]
        self.held: list[dict[str, int]] = answer["held"]
        return [row["loss"] for row in answer["metrics"]], " | ".join(sorted(set(answer["outcomes"])))

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(HANG)
