"""What the real run takes, by what rehearsals measured.

A node's time is a fixed part and a part that grows with its work. Two rehearsals of it, wiring and shape, tell both;
of one that trains, the time of its own steps does, and what is left of the attempt is fixed but for what measures the
model. Work is counted as the plan counts it (`units`). The interval: all time fixed and all of it growing (of a
training: by its fastest and its slowest step). A node that reads no artifact is as much work as its settings ask it to
make; where that is as much in both rehearsals, the two times are the interval. It is wider at both ends by as much as
forecasts were off (`OFF`).

Nothing is forecast where a stand-in ran, or where the work is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from flows import scale, training_work
from flows.cost import Estimate
from flows.rehearsal import evaluation, growth
from flows.rehearsal.report import Checkpointing, Forecast, Measured, NodeReport
from stages.core.artifacts import ArtifactManifest
from stages.core.errors import StageError
from stages.core.graph import Node
from stages.core.resources import Resources
from stages.lib.data.raw_source import RawSource

REHEARSED = "rehearsal of"
"""How the basis of an estimate begins that goes by one."""
OFF = 0.3
"""Each node of `tiny` that takes over ten seconds took within so much of its forecast, and 45 of all 48 within an
interval that is wider by it, 18 without (benchmarks/README.md, "Hours of `tiny`"; another machine may differ more).
"""
Clock = Literal["seconds", "cpu_seconds"]
CLOCKS: tuple[Clock, ...] = ("seconds", "cpu_seconds")
CORE_SECONDS = "core-seconds by infra/rates.toml"
TASKS = "tasks"
"""Of an evaluation: as many as in its rehearsal. What each asks stands in the report."""
OUTSIDE = frozenset({"hub", "listing", "folder", "store", "package"})
"""Origins of what no other node made: what is read of nodes tells nothing of how much that is."""
RESPONSES = "tokens of responses"
"""Half of the longest is taken for the mean length (as the stage's own sum of its work does), and the longest at most.
Those of a rehearsal are counted, else as long as can be: its model ends no response. Engine `trl` writes a batch until
its longest response ends: there all are as long as can be.
"""


def units(config: Any, estimate: Estimate) -> tuple[str, float]:
    """How much work a node is, and in what; ("", 0): not known."""
    if hasattr(config, "tokens") and hasattr(config, "steps"):
        return "tokens", float(config.steps * config.global_batch_size * config.sequence_length)
    if phases := getattr(config, "context_phases", ()):
        written = sum(one.steps * one.num_generations * one.max_response_length for one in phases)
        return RESPONSES, written * config.prompts_per_step / _longest(config)
    if hasattr(config, "global_batch_size") and hasattr(config, "epochs"):
        return "rows", float(estimate.rows * config.epochs)
    if estimate.flops:
        return "FLOPs", estimate.flops
    if tasks := evaluation.asked(config):
        return TASKS, float(len(tasks))
    if (size := estimate.scale) is None:
        return "", 0.0
    origins = _origins(config)
    if "machine" in origins:  # what is taken over beside is as much in each rehearsal
        return "that its settings ask for", growth.asked(config)
    if size.core_seconds and size.rates != scale.ROWS_ALONE:
        return CORE_SECONDS, size.core_seconds
    if not origins & OUTSIDE and size.bytes_in and not size.unmeasured:
        return "bytes read", size.bytes_in
    return ("", 0.0) if size.bytes_in or size.unknown else _taken(config)


def _origins(config: Any) -> set[str]:
    """Where a node takes what no other node made."""
    sets: Mapping[str, Any] = getattr(config, "data_sets", None) or {}
    return {one.origin for one in sets.values()} or {getattr(config, "origin", "")}


def _taken(config: Any) -> tuple[str, float]:
    """Of a node that reads no artifact: the data sets, or the sources that it lists."""
    sets: Mapping[str, Any] = getattr(config, "data_sets", None) or {}
    if sets:
        return "data sets", float(len(sets))
    values = list(cast("dict[str, Any]", vars(config)).values())
    listed: list[Any] = [one for value in values if isinstance(value, tuple) for one in cast("tuple[Any, ...]", value)]
    if listed and all(isinstance(one, RawSource) for one in listed):
        return "sources", float(len(listed))
    return "", 0.0


def units_of_inputs(
    node: Node, config: Any, resources: Resources, inputs: Mapping[str, Sequence[ArtifactManifest]]
) -> tuple[str, float, tuple[float, float]]:
    """How much work a node was, by what it read, and FLOPs of reading and writing to measure beside it."""
    try:
        work = node.work(config, inputs)
        sizes = scale.of_node(node, config, resources, {port: list(many) for port, many in inputs.items()}, {})
    except StageError:
        return "", 0.0, (0.0, 0.0)
    rows = training_work.rows_of(config, inputs)
    one = Estimate(flops=work.flops + work.written_flops, scale=sizes, rows=rows)
    return *units(config, one), training_work.measuring_of(node, config, inputs)


def _longest(config: Any) -> int:
    """How many times its likely length the longest response of a reinforcement is (`RESPONSES`)."""
    return 1 if config.engine == "trl" else 2


def of_rehearsal(config: Any, name: str, amount: float, measured: Measured) -> float:
    """How much work a rehearsal was, where its rows tell more than its configuration: of responses."""
    if name != RESPONSES or _longest(config) == 1:
        return amount
    return measured.response_tokens or _longest(config) * amount


@dataclass(frozen=True)
class Times:
    """Seconds of a node, by a clock or summed over processors: from, likely, to."""

    least: float
    likely: float
    most: float


def forecast(
    config: Any,
    resources: Resources,
    estimate: Estimate,
    prices: Mapping[str, Any],
    shape: NodeReport | None,
    wiring: NodeReport | None,
) -> Forecast | None:
    """The time and the price of a node's real run; None: nothing that could be told was measured. estimate: how much
    it is.
    """
    name, amount = units(config, estimate)
    large, small = _usable(shape, name), _usable(wiring, name)
    if not amount or large is None or large.measured is None or not large.units:
        return None
    one, ranks = large.measured, resources.nodes * resources.ranks
    more = ranks / max(1, large.ranks)
    if one.step_seconds and one.steps:
        work = amount + training_work.heldout_tokens(config) if name == "tokens" else amount
        most = work * _longest(config) if name == RESPONSES else work
        wall, processor = _trained(large, small, (work / more, most / more), estimate.measuring)
        rate = f"{large.units / one.steps / _step(one)[0]:,.3g} {name} a second"
        basis = f"{rate} of {large.ranks} process{'es' * (large.ranks > 1)}"
    elif name == TASKS:
        if (both := _evaluated(config, estimate.questions, one)) is None:
            return None
        (wall, processor), basis = both, f"what each of {large.units:.0f} tasks took"
    elif small is not None and small.measured is not None and large.units > small.units:
        wall, processor = (_between(small, large, amount / more, clock) for clock in CLOCKS)
        basis = f"two rehearsals of {small.units:,.3g} and {large.units:,.3g} {name}"
    elif small is not None and small.measured is not None and amount == large.units == small.units and more == 1:
        wall, processor = (_as_measured(small.measured, one, clock) for clock in CLOCKS)
        basis = f"two rehearsals of as much: {amount:,.3g} {name}"
    else:
        return None
    steps = training_work.steps_of(config, estimate.rows) if one.step_seconds else 0
    kept = one.checkpoints or Checkpointing()
    pauses = kept.pause / more * (steps // getattr(config, "checkpoint_every", steps)) if steps else 0.0
    seconds = _interval(*(value + pauses for value in (wall.least, wall.likely, wall.most)))
    gpus, gpu, core = resources.gpus * resources.nodes, prices["gpu"], prices["cpu"]
    if gpus:
        dollars = [value / 3600 * gpus * gpu["dollars_per_hour"] for value in seconds]
    else:
        each = _interval(processor.least, processor.likely, processor.most)
        dollars = [value * more / 3600 * core["dollars_per_core_hour"] for value in each]
    machine = kept.bytes * ranks / more / resources.nodes, kept.disk / more, kept.store / more
    return Forecast(
        seconds=seconds,
        gpu_hours=seconds[1] / 3600 * gpus,
        core_hours=0.0 if gpus else processor.likely * more / 3600,
        dollars=(dollars[0], dollars[1], dollars[2]),
        basis=basis + (f", taken to grow with their number to {ranks}" if more > 1 else ""),
        pauses=pauses,
        resume=_rest(one, "seconds") + kept.read / more if kept.read else 0.0,
        step=amount / large.units * one.steps * _step(one)[0] / more / steps if steps else 0.0,
        last_checkpoint=machine if steps and kept.bytes else None,
    )


def _interval(least: float, likely: float, most: float) -> tuple[float, float, float]:
    return least * (1 - OFF), likely, most * (1 + OFF)


def _rest(one: Measured, clock: Clock) -> float:
    """What an attempt took beside its steps and reading a checkpoint: its start, what it writes, what it measures."""
    if not one.step_seconds:
        return one.seconds if clock == "seconds" else one.cpu_seconds
    read = one.checkpoints.read if one.checkpoints else 0.0
    wall, processor = _step(one)
    if clock == "seconds":
        return max(0.0, one.seconds - one.steps_here * wall - read)
    return max(0.0, one.cpu_seconds - one.steps_here * processor)


def _step(one: Measured) -> tuple[float, float]:
    """Seconds and processor seconds (0: not told) of a step of a training."""
    if one.mean_step:
        return one.mean_step
    return one.step_seconds[1] if one.step_seconds else 0.0, one.step_processor_seconds or 0.0


def _trained(
    large: NodeReport, small: NodeReport | None, amount: tuple[float, float], measuring: tuple[float, float]
) -> tuple[Times, Times]:
    """Of a training that tells the time of its steps, by the wall and by the processors. amount: likely, and at most.

    What measuring its model takes grows with its operations. Where the attempt did not tell how long that took, the
    rehearsal of tiny widths, if there is one, tells what is left without.
    """
    one = large.measured
    assert one is not None
    assert one.step_seconds is not None
    mean, processor = _step(one)
    each_step = min(one.step_seconds[0], mean), mean, max(one.step_seconds[2], mean)
    per_unit = [value * one.steps / large.units for value in each_step]
    share = processor / mean
    if not processor:
        share = one.cpu_seconds / one.seconds if one.seconds else 0.0
    times: list[Times] = []
    for clock in CLOCKS:
        rest, factor = _rest(one, clock), 1.0 if clock == "seconds" else share
        grown = _ratio(sum(measuring), one.measuring)
        if one.measuring_seconds:
            likely = rest + _more_measuring(one, clock, measuring)
            beside = (rest, likely, likely)
        else:
            start = min(rest, _rest(small.measured, clock)) if small and small.measured else rest
            beside = (rest, start + (rest - start) * grown, max(rest, rest * grown))
        amounts = (amount[0], *amount)
        each = zip(per_unit, amounts, beside, strict=True)
        times.append(Times(*(value * factor * work + more for value, work, more in each)))
    return times[0], times[1]


def _ratio(real: float, small: float) -> float:
    """How many times as much: no less than as much."""
    return max(1.0, real / small) if small else 1.0


def _more_measuring(one: Measured, clock: Clock, flops: tuple[float, float]) -> float:
    """What measuring a model takes beyond what it took: reading and writing each grow with their operations, and what
    has none is as it was (answers that are checked, where nothing is read).
    """
    number, (read, written) = CLOCKS.index(clock), flops
    whole, writing = (pair[number] if pair else 0.0 for pair in (one.measuring_seconds, one.writing_seconds))
    return (whole - writing) * (_ratio(read, one.measuring - one.measuring_written) - 1) + writing * (
        _ratio(written, one.measuring_written) - 1
    )


def _evaluated(config: Any, questions: int, one: Measured) -> tuple[Times, Times] | None:
    """Of an evaluation, by the wall and by the processors; None: its attempt does not tell of each task."""
    both = [evaluation.seconds(config, questions, one, processor) for processor in (False, True)]
    wall, processor = both
    return (Times(*wall), Times(*processor)) if wall and processor else None


def _between(small: NodeReport, large: NodeReport, amount: float, clock: Clock) -> Times:
    """Of a node whose time is a fixed part and one that grows with its work: a line through two rehearsals. It may all
    be fixed (from), or all grow (to).
    """
    assert small.measured is not None
    assert large.measured is not None
    first, second = _again(small.measured, clock), _again(large.measured, clock)
    slope = max(0.0, second - first) / (large.units - small.units)
    likely = max(0.0, second - slope * large.units) + slope * amount
    grown = second * amount / large.units
    return Times(min(likely, second, grown), likely, max(likely, second, grown))


def _as_measured(first: Measured, second: Measured, clock: Clock) -> Times:
    """Of a node whose rehearsals were as much work as it is."""
    one, other = _again(first, clock), _again(second, clock)
    return Times(min(one, other), other, max(one, other))


def _again(one: Measured, clock: Clock) -> float:
    """What an attempt would take where it ran before: without what is done once a machine."""
    return max(0.0, getattr(one, clock) - one.once[CLOCKS.index(clock)])


def _usable(node: NodeReport | None, name: str) -> NodeReport | None:
    """A report whose numbers say something about the real machines, in the same count of work."""
    if node is None or node.state != "passed" or node.unit != name:
        return None
    return None if node.unlike else node


def as_estimate(one: Forecast, at: str, before: Estimate) -> Estimate:
    """A plan's estimate that goes by what was measured."""
    return replace(
        before,
        seconds=one.seconds[1],
        gpu_hours=one.gpu_hours,
        core_hours=one.core_hours,
        dollars=one.dollars[1],
        basis=f"{REHEARSED} {at[:10]}",
        untimed="",
        step=one.step,
        last_checkpoint=one.last_checkpoint,
        lost_seconds=before.lost_seconds * one.seconds[1] / before.seconds if before.seconds else before.lost_seconds,
    )
