"""What a rehearsal's attempts used: of their manifests and metric rows."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from flows import training_work
from flows.log_lines import StoredLines
from flows.rehearsal.report import Checkpointing, Measured
from stages.core.ledger import Ledger
from stages.core.messages import StageResult

Range = tuple[float, float, float]


def of(result: StageResult, ledger: Ledger, config: Any, measuring: float = 0.0) -> Measured:
    """What one attempt used. measuring: FLOPs of what it did beside its training."""
    lines = StoredLines(ledger.store, result.metrics_object) if result.metrics_object else ()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    attempt, stats = result.attempt, result.stats
    steps = int(max((row.get("step", 0) for row in rows), default=0))
    warm = _warm(rows, attempt.resumed_from)
    return Measured(
        seconds=attempt.wall_seconds,
        cpu_seconds=attempt.cpu_seconds,
        peak_memory_bytes=attempt.peak_rss_bytes,
        bytes_in=attempt.bytes_in,
        bytes_out=attempt.bytes_out,
        steps=steps,
        step_processor_seconds=_middle([row.get("step_processor_seconds", 0.0) for row in warm]),
        steps_here=max(0, steps - (attempt.resumed_from or 0)),
        tokens_per_second=_range([row["tokens_per_second"] for row in warm if row.get("tokens_per_second")]),
        step_seconds=_range(_step_seconds(warm, rows)),
        loader_tokens_per_second=stats.get("loader_tokens_per_second"),
        checkpoints=_checkpoints(stats.get("checkpoints", {})),
        measuring=measuring,
        measuring_seconds=(part["seconds"], part["cpu_seconds"]) if (part := stats.get("measuring")) else None,
        response_tokens=_response_tokens(rows, config),
    )


def _response_tokens(rows: Sequence[Mapping[str, Any]], config: Any) -> float:
    """Of all responses that it learned from, by their mean length at each step; a step that says none was as the rest.
    0: none says.
    """
    written = [
        (training_work.responses_of(config, int(row["step"])), row["response_length"])
        for row in rows
        if row.get("response_length") is not None and row.get("step")
    ]
    if not (counted := sum(count for count, _ in written)):
        return 0.0
    everything = sum(phase.steps * phase.num_generations for phase in config.context_phases) * config.prompts_per_step
    return sum(count * length for count, length in written) / counted * everything


def _range(values: Sequence[float]) -> Range | None:
    return (min(values), statistics.median(values), max(values)) if values else None


def _middle(values: Sequence[float]) -> float | None:
    known = [value for value in values if value]
    return statistics.median(known) if known else None


def _warm(rows: Sequence[dict[str, Any]], resumed_from: int | None) -> Sequence[dict[str, Any]]:
    """Rows of steps but the first of each attempt, which makes kernels and fills caches; all, where there are no
    others.
    """
    first = {1, (resumed_from or 0) + 1}
    return [row for row in rows if row.get("step", 0) not in first] or rows


def _step_seconds(warm: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """As the rows say, or by the tokens that a row has more than the one of the step before."""
    tokens = {row.get("step", 0): row.get("tokens", 0.0) for row in rows} | {0: 0.0}
    out: list[float] = []
    for row in warm:
        step, rate = row.get("step", 0), row.get("tokens_per_second")
        if row.get("step_seconds"):
            out.append(row["step_seconds"])
        elif rate and row.get("tokens") and step - 1 in tokens:
            out.append((row["tokens"] - tokens[step - 1]) / rate)
    return out


def _checkpoints(most: Mapping[str, float]) -> Checkpointing | None:
    """Of the statistic that `Checkpoints.note` makes."""
    if not most:
        return None
    return Checkpointing(
        bytes=most.get("bytes", 0.0),
        pause=most.get("pause_seconds", 0.0),
        disk=most.get("disk_seconds", 0.0),
        store=most.get("store_seconds", 0.0),
        read_bytes=most.get("read_bytes", 0.0),
        read=most.get("read_seconds", 0.0) + most.get("load_seconds", 0.0),
    )
