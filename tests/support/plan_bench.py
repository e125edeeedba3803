"""Runs of the small pipeline over one ledger, and the plans that follow."""

from __future__ import annotations

from pathlib import Path

from flows.plan import NodePlan, make_plan
from stages.core.graph import Pipeline
from stages.core.ledger import Ledger
from tests.support.probe_pipeline import execution, profile_of, run_nodes, small_pipeline

PIPE = small_pipeline()


class Bench:
    """One ledger, with runs and plans of the small pipeline over it."""

    def __init__(self, ledger: Ledger, folder: Path, pipeline: Pipeline = PIPE) -> None:
        self.ledger, self.folder, self.pipeline = ledger, folder, pipeline

    def run(self, *overrides: str, until: str | None = None, select: str = "full", force: bool = False) -> None:
        profile = profile_of(self.pipeline, self.folder, *overrides)
        run_nodes(
            execution(self.pipeline, profile, self.ledger, self.folder, select=select, force=force),
            self.pipeline,
            until,
        )

    def plan(self, *overrides: str, select: str = "full", force: bool = False) -> dict[str, NodePlan]:
        profile = profile_of(self.pipeline, self.folder, *overrides)
        return {p.node.name: p for p in make_plan(self.pipeline, profile, self.ledger, select, force)}

    def keys(self) -> dict[str, str]:
        return {name: record.key for name, record in self.ledger.nodes("test").items()}
