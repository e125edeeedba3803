"""`moxin` with another pipeline: the paper's nodes and edges, each node a `step` without work (probes/step).

    MOXIN_HOME=/tmp/steps python -m benchmarks.step_pipeline run --set sft_tulu.trial=1

Commands, flow, ledger, launcher and stage processes are the real ones. For benchmarks.orchestration_peers.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import stages
from benchmarks.orchestration import PROBES, stand_in
from stages import pipeline as declared
from stages.core.graph import Pipeline

PROFILE = "parallel = 2\nretries = 0\n"
LABEL = '[node.{0}]\nlabel = "{0}"\n'


def edges() -> dict[str, tuple[str, ...]]:
    """The parents of each node of the paper's pipeline, in its order."""
    return {node.name: node.parents for node in declared.PIPELINE}


def pipeline() -> Pipeline:
    """The same graph of steps."""
    stages.__path__.append(str(PROBES))
    step = importlib.import_module("stages.step.spec").Step
    nodes: dict[str, Any] = {}
    for name, parents in edges().items():
        nodes[name] = step(name=name, before=[nodes[parent].after for parent in parents] or None)
    return Pipeline(nodes.values())


def main() -> None:
    """Put the graph in the real one's place before anything reads that, then be `moxin`."""
    declared.PIPELINE = pipeline()
    from flows import cli, profiles

    load = profiles.load
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "steps.toml").write_text(PROFILE + "".join(map(LABEL.format, edges())), encoding="utf-8")
        profiles.load = lambda name, pipeline, overrides=(), folder=Path(folder): load(
            "steps", pipeline, overrides, folder
        )
        sys.executable = stand_in(Path(folder))
        cli.main()


if __name__ == "__main__":
    main()
