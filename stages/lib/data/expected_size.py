"""How large a corpus will be, as far as a profile says it: for the plan alone, before anything is read. Light.

[node.collect]
expected = { web = { documents = 3.0e9, text_bytes = 14e12 } }
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from stages.core.stage import Output


class ExpectedSize(BaseModel):
    """What becomes of the sources of a port once they are documents, about."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    documents: float = Field(gt=0, description="documents that `ingest` makes of it, after its rules")
    text_bytes: float = Field(gt=0, description="bytes of their text")

    def scaled(self, share: float) -> ExpectedSize:
        """As large a share of it."""
        return ExpectedSize(documents=self.documents * share, text_bytes=self.text_bytes * share)


def expected_size(source: Output[Any], configs: Mapping[str, Any]) -> ExpectedSize | None:
    """The size of an artifact that follows from one source, at most: what is declared upstream, and no more than a
    node's `limit`. configs: of all nodes, by name. None: nothing is declared.
    """
    config = configs.get(source.node.name)
    declared: Mapping[str, ExpectedSize] = getattr(config, "expected", None) or {}
    if source.port in declared:
        return declared[source.port]
    above = [output for outputs in source.node.wires.values() for output in outputs]
    size = expected_size(above[0], configs) if len(above) == 1 else None
    limit = getattr(config, "limit", None)
    if size is None or limit is None or limit >= size.documents:
        return size
    return size.scaled(limit / size.documents)
