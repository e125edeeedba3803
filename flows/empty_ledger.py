"""A ledger in which nothing has run: what a plan goes by where there is no object store yet."""

from __future__ import annotations

from collections.abc import Collection

from stages.core.ledger import Ledger
from stages.core.messages import StageResult
from stages.core.records import ExperimentRecord, LeaseRecord, NodeRecord


class EmptyLedger(Ledger):
    """Answers what a plan asks, and has no store to ask anything else of."""

    def __init__(self) -> None:
        """There is nothing to open."""

    def manifest(self, key: str, listed: bool = False) -> tuple[StageResult, str] | None:
        """No result."""
        return None

    def node(self, profile: str, name: str) -> NodeRecord | None:
        """No record."""
        return None

    def nodes(self, profile: str, names: Collection[str] | None = None) -> dict[str, NodeRecord]:
        """No records."""
        return {}

    def node_etags(self, profile: str) -> dict[str, str]:
        """No records."""
        return {}

    def experiment(self, name: str) -> ExperimentRecord | None:
        """No experiment."""
        return None

    def experiments(self) -> list[ExperimentRecord]:
        """No experiments."""
        return []

    def lease(self, key: str) -> tuple[LeaseRecord, str] | None:
        """Nobody works on it."""
        return None

    def checkpoint_steps(self, key: str) -> list[int]:
        """No checkpoints."""
        return []
