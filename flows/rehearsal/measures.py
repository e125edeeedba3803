"""What a rehearsal's attempts used: of their manifests and metric rows."""

from __future__ import annotations

import json
import statistics
from typing import Any

from flows.log_lines import StoredLines
from flows.rehearsal.report import Measured
from stages.core.ledger import Ledger
from stages.core.messages import StageResult


def of(result: StageResult, ledger: Ledger) -> Measured:
    """What one attempt used."""
    lines = StoredLines(ledger.store, result.metrics_object) if result.metrics_object else ()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    attempt = result.attempt
    rates = [row["tokens_per_second"] for row in rows if row.get("tokens_per_second")]
    rates = rates[1:] or rates  # the first step makes kernels and fills caches
    return Measured(
        seconds=attempt.wall_seconds,
        cpu_seconds=attempt.cpu_seconds,
        peak_memory_bytes=attempt.peak_rss_bytes,
        bytes_in=attempt.bytes_in,
        bytes_out=attempt.bytes_out,
        steps=int(max((row.get("step", 0) for row in rows), default=0)),
        tokens_per_second=(min(rates), statistics.median(rates), max(rates)) if rates else None,
    )
