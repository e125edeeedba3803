"""Parent and child, measured alike after training: what fails is a gap with its reason, never the end of a trained
model.

A `Measurement` is one thing that is measured (probabilities of answers, solved problems, ...). Of the parent each is
measured once: it is remembered under a name that says what it depends on (the parent's weights, the held-out data, the
settings, the code), and recalled by every attempt and every other child with the same name.

An attempt that dies while a part is measured, and was not asked to stop, is counted in the store. A part at which two
have died is left out, as a gap that says so: the kernel would kill the next one too. One death may be a lost machine's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stages.core.context import Context
from stages.core.errors import Preempted
from stages.core.keys import canonical_json, sha256, source_digest
from stages.core.timed_part import TimedPart
from stages.lib.finetuning.evaluated_model import LazyModel
from stages.lib.formats.paired_eval import Effect


@dataclass(frozen=True)
class Measurement:
    """One measurement. settings: fields of the configuration that it depends on; ports: the inputs with its held-out
    data.
    """

    name: str
    measure: Callable[[LazyModel], Any]
    """Returns a JSON value."""
    settings: Sequence[str]
    ports: Sequence[str]


@dataclass
class Measurements:
    """What was measured of parent and child, part by part, and why a part is missing."""

    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    gaps: dict[str, str] = field(default_factory=dict)

    def both(self, part: str) -> tuple[Any, Any] | None:
        """Parent's and child's values; None where one is missing."""
        return (self.before[part], self.after[part]) if part in self.before and part in self.after else None

    def stats(self) -> dict[str, Any]:
        """For the manifest: which parts are missing, and why."""
        return {"not_measured": dict(sorted(self.gaps.items()))} if self.gaps else {}


ALWAYS = ("engine", "precision", "seed")
"""Settings that every measurement depends on."""


DEATHS = 2
"""So many attempts must have died at a part before it is left out."""
KILLED = f"{DEATHS} attempts died while they measured this, as a rule killed by the kernel for want of memory"
WATCH_SECONDS = 0.2
"""Between looks whether the stage is asked to stop."""


def measure(
    ctx: Context[Any], stage: str, child: Path, device: torch.device, parts: Sequence[Measurement]
) -> Measurements:
    """Measure the parent, as far as it is not remembered, and the child in `child`. Raises Preempted, and
    nothing else.
    """
    measured = Measurements()
    names = {part.name: memory_name(ctx, stage, part) for part in parts}
    missing = [part for part in parts if not _recall_parent(ctx, measured, part.name, names[part.name])]
    times = all_time, writing = TimedPart(), TimedPart()
    with all_time:
        if missing:
            with LazyModel(ctx, Path(ctx.input("parent").path), device, "parent", times) as subject:
                for part in missing:
                    if _measure_part(ctx, stage, measured, part, subject, "parent"):
                        _remember(ctx, names[part.name], measured.before[part.name])
        with LazyModel(ctx, child, device, "child", times) as subject:
            for part in parts:
                _measure_part(ctx, stage, measured, part, subject, "child")
    ctx.stat(measuring={**all_time.spent(), "writing": writing.spent()})
    for mark in [_mark_name(ctx, stage, part, model) for part in parts for model in ("parent", "child")]:
        if _recall(ctx, mark):
            _remember(ctx, mark, 0)  # not before the last part: none that kills is tried again; a forced run tries all
    return measured


def compared(ctx: Context[Any], measured: Measurements, compare: Callable[[], list[Effect]]) -> list[Effect]:
    """What `compare` makes of the measured parts. One that fails is a gap, too: the model is trained, and published."""
    try:
        return compare()
    except Exception as error:
        _add_gap(ctx, measured, "comparison", error)
        return []


def memory_name(ctx: Context[Any], stage: str, part: Measurement) -> str:
    """The name under which a part of the parent's is remembered: a digest of all that it depends on."""
    config = ctx.config.model_dump(mode="json")
    value = {
        "stage": stage,
        "part": part.name,
        "code": source_digest(stage),
        "settings": {name: config[name] for name in sorted({*ALWAYS, *part.settings})},
        "inputs": {port: [a.manifest.digest for a in ctx.inputs(port)] for port in ("parent", *part.ports)},
    }
    return f"measured-{sha256(canonical_json(value))}"


def _mark_name(ctx: Context[Any], stage: str, part: Measurement, model: str) -> str:
    """The name of the mark with the deaths at a part: of this node's result alone, so by all its settings."""
    value = {"part": memory_name(ctx, stage, part), "settings": ctx.config.identity(), "node": ctx.node, "model": model}
    return f"measuring-{sha256(canonical_json(value))}"


def _measure_part(
    ctx: Context[Any], stage: str, measured: Measurements, part: Measurement, subject: LazyModel, model: str
) -> bool:
    """Measure one part of the parent or the child, or keep the reason why not. model: `parent` or `child`."""
    mark, name = _mark_name(ctx, stage, part, model), f"{model}: {part.name}"
    deaths = int(_recall(ctx, mark) or 0)
    if deaths >= DEATHS:
        measured.gaps[name] = KILLED
        ctx.log(f"{part.name} of the {model} is left out: {KILLED}", "warning")
        return False
    values = measured.before if model == "parent" else measured.after
    try:
        with _death_counted(ctx, mark, deaths):
            values[part.name] = part.measure(subject)
    except Exception as error:  # whatever it is: the model is trained, and published without this number
        # A Preempted that nobody asked for is an engine that a signal ended, as a rule the kernel for want of memory:
        # the next attempt would fare no better
        if isinstance(error, Preempted) and ctx.stopping:
            raise
        subject.release()
        _add_gap(ctx, measured, name, error)
        return False
    return True


@contextmanager
def _death_counted(ctx: Context[Any], mark: str, deaths: int) -> Iterator[None]:
    """While it lasts, the store counts this attempt among the deaths at a part, until the stage is asked to stop: one
    that is then cut off did not die of what it measured.
    """
    _remember(ctx, mark, deaths + 1)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(WATCH_SECONDS):
            if ctx.stopping:
                _remember(ctx, mark, deaths)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()  # it writes nothing after this
        _remember(ctx, mark, deaths)


def _add_gap(ctx: Context[Any], measured: Measurements, name: str, error: Exception) -> None:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    measured.gaps[name] = reason
    what = "the comparison" if name == "comparison" else "{1} of the {0}".format(*name.split(": ", 1))
    ctx.log(f"{what} could not be measured, and is left out: {reason}", "warning")


def _recall_parent(ctx: Context[Any], measured: Measurements, part: str, name: str) -> bool:
    """Take a part of the parent's from memory, if it is there."""
    if (value := _recall(ctx, name)) is None:
        return False
    measured.before[part] = value
    ctx.log(f"{part} of the parent was measured before")
    return True


def _recall(ctx: Context[Any], name: str) -> Any:
    try:
        return ctx.recall(name)
    except Exception as error:  # a memory is an economy, not a need
        ctx.log(f"what was measured before cannot be read: {error}", "warning")
        return None


def _remember(ctx: Context[Any], name: str, value: Any) -> None:
    try:
        ctx.remember(name, value)
    except Exception as error:
        ctx.log(f"what was measured cannot be kept: {error}", "warning")


def gaps_of(stats: Mapping[str, Any]) -> dict[str, str]:
    """Which parts a manifest's numbers say were not measured, and why."""
    return dict(stats.get("not_measured", {}))
