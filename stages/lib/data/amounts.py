"""What corpora take up, for the scales of data stages: sizes that a stage's own settings fix, and shares declared where
only a run can tell. Each states its source.
"""

from __future__ import annotations

from collections.abc import Sequence

from stages.core.artifacts import ArtifactManifest
from stages.core.scale import Amounts, Unknown, amount

STORED = 0.4
"""Bytes of Parquet with zstd for each byte of text. Declared: SlimPajama's own files are 0.36 (895 GB of JSON lines for
627 G tokens of 4 bytes; its card).
"""
BYTES_A_TOKEN = 4.0
"""Text a token of a vocabulary of 32,000. Declared; English prose."""
PART_BYTES = 512 << 20
"""Of a stored part (`stages/lib/formats/parquet_parts.py`)."""
SHARD_BYTES, MAX_SHARDS = 64 << 20, 20_000
"""Of the text that one task works on, and how many tasks there are at most (`stages/lib/formats/corpus.py`)."""
REFINEDWEB_KEPT = 0.23
"""Share of raw pages that RefinedWeb's rules leave (arXiv 2306.01116, figure 2)."""
DEDUPLICATED = {"slimpajama": 0.95, "dclm": 0.65, "the-stack": 0.45}
"""Share that deduplication leaves, by the beginning of its recipe's name. Declared: SlimPajama is deduplicated already;
DCLM-BASELINE's 3 G documents of the pool's 200 G (its card) are the tenth that quality kept of 0.15, which are 0.65 of
the 0.23; the-stack-dedup is 2.9 TB of 6.4 TB (its card).
"""


def documents(count: float, text_bytes: float) -> Amounts:
    """A corpus as it is stored."""
    stored = text_bytes * STORED
    return {"documents": count, "text_bytes": text_bytes, "bytes": stored, "files": max(1.0, stored / PART_BYTES)}


def corpus(artifacts: Sequence[ArtifactManifest]) -> tuple[float, float, float]:
    """Documents, bytes of text and stored bytes of corpora. Raises Unknown."""
    return amount(artifacts, "documents"), amount(artifacts, "text_bytes"), amount(artifacts, "bytes")


def shards(text_bytes: float) -> tuple[float, float]:
    """How many tasks a corpus is cut into, and the stored bytes that one of them works on."""
    count = min(float(MAX_SHARDS), max(1.0, text_bytes / SHARD_BYTES))
    return count, text_bytes / count * STORED


def text_of(artifacts: Sequence[ArtifactManifest]) -> float:
    """Bytes of text, or what is stored where artifacts are no corpora. Raises Unknown."""
    try:
        return amount(artifacts, "text_bytes")
    except Unknown:
        return amount(artifacts, "bytes")
