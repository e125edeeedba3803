"""What bounds a corpus that is deduplicated together, the sums behind it, and how a larger one is dealt out. Light: the
plan imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

MAX_DOCUMENTS = (1 << 32) - 1
"""Documents of one partition: their numbers have 32 bits. With 64 the pairs and LSH records that are sorted through
storage would grow by a half to twice, and the clusters in memory from 8 to 16 bytes a document, for every corpus; DCLM
itself took ten parts one by one.
"""
T = TypeVar("T")


def too_many(documents: float, partitions: int) -> str:
    """The sum when partitions would have more documents than they can number, and what to do."""
    return (
        f"{documents:,.0f} documents / {partitions} partition{'s' * (partitions > 1)} ="
        f" {documents / partitions:,.0f}, more than a partition numbers (2^32 - 1 = {MAX_DOCUMENTS:,}): set partitions"
        f" to {-(-int(documents) // MAX_DOCUMENTS)} or more"
    )


def dealt(items: Sequence[T], partitions: int) -> list[Sequence[T]]:
    """Item i to partition i mod `partitions`, as BFF's --shard-num and --total-shards deal files; none is empty."""
    return [items[number::partitions] for number in range(min(partitions, max(1, len(items))))]
