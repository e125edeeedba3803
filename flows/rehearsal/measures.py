"""What a rehearsal's attempts used: of their manifests and metric rows."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from flows import training_work
from flows.log_lines import StoredLines
from flows.rehearsal.report import Checkpointing, Measured, TaskTime
from stages.core.ledger import Ledger
from stages.core.messages import StageResult

Range = tuple[float, float, float]
COLD = 10
"""Steps of an attempt that are left out at most."""


def of(result: StageResult, ledger: Ledger, config: Any, measuring: tuple[float, float] = (0.0, 0.0)) -> Measured:
    """What one attempt used. measuring: FLOPs of what it read and wrote beside its training."""
    lines = StoredLines(ledger.store, result.metrics_object) if result.metrics_object else ()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    attempt, stats = result.attempt, result.stats
    steps = int(max((row.get("step", 0) for row in rows), default=0))
    warm = _warm(rows, attempt.resumed_from)
    taken = _step_seconds(warm, rows)
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
        step_seconds=_range([seconds for _, seconds in taken]),
        mean_step=_mean_step(taken, warm, steps, config),
        loader_tokens_per_second=stats.get("loader_tokens_per_second"),
        checkpoints=_checkpoints(stats.get("checkpoints", {})),
        measuring=sum(measuring),
        measuring_written=measuring[1],
        measuring_seconds=_clocks(stats.get("measuring")),
        writing_seconds=_clocks(stats.get("measuring", {}).get("writing")),
        once=_clocks(stats.get("once")) or (0.0, 0.0),
        parts={name: TaskTime.model_validate(part) for name, part in stats.get("parts", {}).items()},
        response_tokens=_response_tokens(rows, config),
    )


def _clocks(part: Mapping[str, float] | None) -> tuple[float, float] | None:
    """Seconds and processor seconds of a `TimedPart`."""
    return (part["seconds"], part["cpu_seconds"]) if part else None


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
    """Rows of steps but the first of each attempt, which make kernels, fill caches and share the processors with what
    starts beside: half of its steps, at most COLD; all, where there are no others.
    """
    parts = [[row for row in rows if (row.get("step", 0) > (resumed_from or 0)) is later] for later in (False, True)]
    return [row for part in parts for row in part[min(COLD, -(-len(part) // 2)) :]] or rows


def _step_seconds(
    warm: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], float]]:
    """Rows and the seconds of their steps: as they say, or by the tokens that a row has more than the one of the step
    before.
    """
    tokens = {row.get("step", 0): row.get("tokens", 0.0) for row in rows} | {0: 0.0}
    out: list[tuple[Mapping[str, Any], float]] = []
    for row in warm:
        step, rate = row.get("step", 0), row.get("tokens_per_second")
        if row.get("step_seconds"):
            out.append((row, row["step_seconds"]))
        elif rate and row.get("tokens") and step - 1 in tokens:
            out.append((row, (row["tokens"] - tokens[step - 1]) / rate))
    return out


def _mean_step(
    taken: Sequence[tuple[Mapping[str, Any], float]], warm: Sequence[Mapping[str, Any]], steps: int, config: Any
) -> tuple[float, float] | None:
    """Seconds, and processor seconds of its first process, of the mean of all steps, by the warm ones: the steps of
    another phase of a reinforcement are of other work.
    """
    if not taken:
        return None
    batches = training_work.steps_of(config, 0) if hasattr(config, "context_phases") else steps
    each = max(1, steps // max(1, batches))  # optimizer steps of a batch of responses
    work = {step: training_work.longest_of(config, -(-step // each)) or 1.0 for step in range(1, steps + 1)}
    mean = sum(work.values()) / steps
    processor = [(row, row["step_processor_seconds"]) for row in warm if row.get("step_processor_seconds")]

    def of_mean(pairs: Sequence[tuple[Mapping[str, Any], float]]) -> float:
        done = sum(work.get(row.get("step", 0), 1.0) for row, _ in pairs)
        return sum(seconds for _, seconds in pairs) / done * mean if done else 0.0

    return of_mean(taken), of_mean(processor)


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
