"""Let Gemini's chunks believe that this processor's memory is a GPU's: they then never move, and everything else about
them is exercised.
"""

from __future__ import annotations

from typing import Any

import torch
from colossalai.zero.gemini.chunk import Chunk, ChunkManager


def install() -> None:
    """Replace what moves chunks between two memories, of which there is one."""
    begin = Chunk.__init__

    def init(self: Any, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        self.shard_device = torch.device("meta")  # any that is not "cpu": there it would be offloaded

    Chunk.__init__ = init
    Chunk.device_type = property(lambda self: "cuda")
    Chunk.shard_move = lambda self, *arguments, **options: None
    ChunkManager.move_chunk = lambda self, *arguments, **options: None
