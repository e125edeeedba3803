"""A small mirror of Table 6's and 7's data sets, made by the `benchmarks` stage: toy questions, and HumanEval."""

from __future__ import annotations

from pathlib import Path

from stages.benchmarks.run import run
from stages.benchmarks.spec import BenchmarksConfig, DataSetSource
from stages.core.testing import LocalContext


def mirror(root: Path, *ids: str) -> Path:
    """The folder of the suite. HumanEval is the real one, from its package."""
    sources = {
        id: DataSetSource(origin="package", revision="1.0.3")
        if id == "openai/openai_humaneval"
        else DataSetSource(origin="machine")
        for id in ids
    }
    ctx = LocalContext(root, BenchmarksConfig(data_sets=sources, questions=14), {}, node="benchmarks")
    run(ctx)
    return Path(ctx.output("suite"))
