"""Token shards in a folder of a test."""

from __future__ import annotations

from pathlib import Path

from stages.core.artifacts import TokenShards
from stages.core.testing import local_artifact
from stages.lib.formats.shards import Shards


def opened(folder: Path) -> Shards:
    """The shards that lie there."""
    return Shards.open(local_artifact(TokenShards, folder).entries())
