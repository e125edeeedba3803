"""What bounds a corpus that is deduplicated together, the sums behind it, and how a larger one is dealt out. Light: the
plan imports it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

from stages.core.preflight import Problem
from stages.dedup.bloom_size import BYTES_PER_NGRAM, FALSE_POSITIVES, filter_bytes

MAX_DOCUMENTS = (1 << 32) - 1
"""Documents of one partition: their numbers have 32 bits. With 64 the pairs and LSH records that are sorted through
storage would grow by a third to twice, and the clusters in memory from 8 to 16 bytes a document, for every corpus; DCLM
itself took ten parts one by one.
"""
T = TypeVar("T")


def dealt(items: Sequence[T], partitions: int) -> list[Sequence[T]]:
    """Item i to partition i mod `partitions`, as BFF's --shard-num and --total-shards deal files; none is empty."""
    return [items[number::partitions] for number in range(min(partitions, max(1, len(items))))]


def documents_problem(documents: float, partitions: int) -> Problem | None:
    """What is wrong with so many documents in so many partitions."""
    if documents / partitions <= MAX_DOCUMENTS:
        return None
    fault = (
        f"{documents:,.0f} documents / {partitions} = {documents / partitions:,.0f} in a partition, which numbers"
        f" {MAX_DOCUMENTS:,} (2^32 - 1)"
    )
    return Problem("partitions", str(partitions), fault, f"set {math.ceil(documents / MAX_DOCUMENTS)} or more")


def filter_problem(text_bytes: float, memory_gib: float) -> Problem | None:
    """What is wrong with a Bloom filter for so much text of one partition in so much memory."""
    held = filter_bytes(text_bytes) / (1 << 30)
    if held <= memory_gib:
        return None
    fault = (
        f"a filter for {text_bytes / 1e9:,.1f} GB of text / {BYTES_PER_NGRAM} B ="
        f" {int(text_bytes) // BYTES_PER_NGRAM:,} n-grams at {FALSE_POSITIVES:.0%} false positives has {held:,.1f} GiB"
    )
    return Problem("bloom_memory_gib", f"{memory_gib:g}", fault, "raise it, or partitions")


def problems(documents: float, text_bytes: float, partitions: int, memory_gib: float | None) -> Iterator[Problem]:
    """What a corpus of this size exceeds. memory_gib: for Bloom filters; None: there are none."""
    checks = [documents_problem(documents, partitions)]
    if memory_gib is not None:
        checks.append(filter_problem(text_bytes / partitions, memory_gib))
    return (problem for problem in checks if problem is not None)
