"""Drawing a mixture: the wanted share of each data set by seed, one stream in which their rows are evenly spread."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.core.context import Context
from stages.core.errors import ConfigError, InputError
from stages.lib.data.hub import HubDataSet
from stages.lib.data.mixture_spec import MixtureSource
from stages.lib.data.rows import FileRows, Head, Rows


@dataclass(frozen=True)
class Drawn:
    """What is taken of one data set."""

    source: MixtureSource
    license: str
    revision: str | None
    available: int
    rows: Rows
    skipped: Mapping[str, int]
    """Bad rows by reason; they are not among those available."""

    @property
    def name(self) -> str:
        """The data set, with its configuration when that is not the default."""
        return self.source.data_set + ("" if self.source.config == "default" else f"/{self.source.config}")

    def provenance(self) -> dict[str, Any]:
        """Where the rows come from, and how many were taken."""
        origin = {"revision": self.revision, "license": self.license, "split": self.source.split}
        bad = {"skipped": dict(self.skipped)} if self.skipped else {}
        return {**origin, "rows": self.available, "taken": len(self.rows), **bad}


def draw_mixture(ctx: Context[Any], sources: Sequence[MixtureSource], mirror: str | None, seed: int) -> list[Drawn]:
    """Draw from every source: `fraction` of its rows, `cap` at most, in the data set's order.

    Raises InputError or ConfigError naming the data set that cannot be had.
    """
    if not sources:
        raise ConfigError(
            f"{ctx.node}.sources is empty: list at least one data set, or set {ctx.node}.origin = 'machine'"
        )
    out = []
    for number, source in enumerate(sources):
        data_set = HubDataSet(
            source.data_set,
            ctx.scratch / "datasets",
            mirror=mirror,
            revision=source.revision,
            where=f"{ctx.node}.mirror",
        )
        splits = data_set.splits(source.config, skip_bad_rows=True)
        if source.split not in splits:
            raise InputError(
                f"data set {source.data_set}, configuration {source.config}, has no split '{source.split}', only"
                f" {', '.join(splits)}"
            )
        rows = splits[source.split]
        if source.first is not None:
            rows = (
                rows.head(source.first)
                if isinstance(rows, FileRows)
                else rows.select(range(min(source.first, len(rows))))
            )
        count = min(round(len(rows) * source.fraction), source.cap or len(rows))
        taken = rows
        if count < len(rows):
            taken = rows.select(sorted(random.Random(f"{seed}/{number}").sample(range(len(rows)), count)))
        skipped = _told(ctx, source.data_set, rows)
        out.append(Drawn(source, source.license or data_set.license, data_set.revision, len(rows), taken, skipped))
        ctx.progress(number + 1, len(sources), "data sets")
    names = [drawn.name for drawn in out]
    ctx.stat(sources=[{"data_set": name, **drawn.provenance()} for name, drawn in zip(names, out, strict=True)])
    return out


def _told(ctx: Context[Any], data_set: str, rows: Rows) -> Mapping[str, int]:
    """The bad rows by reason, each with its first place in the log."""
    skipped = rows.skipped if isinstance(rows, FileRows | Head) else None
    if skipped is None:
        return {}
    for reason, count in sorted(skipped.counts.items()):
        ctx.log(f"{data_set}: {count} rows skipped, {reason}, first {skipped.places[reason]}", "warning")
    return dict(sorted(skipped.counts.items()))


def interleave(drawn: Sequence[Drawn], seed: int) -> Iterator[tuple[Drawn, int, dict[str, Any]]]:
    """(where from, place in what was taken, row), each source's rows in order and spread evenly over the whole."""
    rng = random.Random(seed)
    streams = [iter(one.rows) for one in drawn]
    left = [len(one.rows) for one in drawn]
    while any(left):
        at = rng.choices(range(len(left)), left)[0]
        yield drawn[at], len(drawn[at].rows) - left[at], dict(next(streams[at]))
        left[at] -= 1
