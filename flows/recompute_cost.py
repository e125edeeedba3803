"""What making something anew would cost, by the attempts that made it: their time and the resources of their node."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from typing import Any

from flows import cost
from flows.garbage_items import Garbage
from flows.garbage_marks import THREADS
from flows.profiles import Profile
from flows.store_garbage import ATTEMPTS, RESULTS, UNFINISHED
from stages.core.ledger import Ledger
from stages.core.records import AttemptRecord, DamagedRecord


@dataclass(frozen=True)
class RecomputeCost:
    """Time by the clock, and what it costs with a node's resources."""

    seconds: float = 0.0
    gpu_hours: float = 0.0
    core_hours: float = 0.0
    dollars: float = 0.0
    unknown: int = 0
    """Attempts whose end, or whose node, is not known: they are in none of the sums."""

    def __add__(self, other: RecomputeCost) -> RecomputeCost:
        return RecomputeCost(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    def row(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def text(self) -> str:
        """For people; "nothing" where nothing would have to be made."""
        if not self.seconds:
            return "not known" if self.unknown else "nothing"
        hours = f"{self.gpu_hours:,.1f} GPU-h" if self.gpu_hours else f"{self.core_hours:,.1f} core-h"
        more = f", and {self.unknown} attempts of unknown length" if self.unknown else ""
        return f"{cost.duration(self.seconds)}, {hours}, ${self.dollars:,.2f}{more}"


def of_all(ledger: Ledger, items: Iterable[Garbage], profile: Profile) -> dict[Garbage, RecomputeCost]:
    """What it took to make each thing; nothing for what no result and no next attempt needs (its key is published).

    profile: whose resources a node has, and its prices.
    """
    prices, all_of_them = cost.prices_of(profile), list(items)
    with ThreadPoolExecutor(THREADS) as pool:
        records = pool.map(partial(_attempts, ledger), all_of_them)
        return {item: _sum(some, profile, prices) for item, some in zip(all_of_them, records, strict=True)}


def _attempts(ledger: Ledger, item: Garbage) -> list[AttemptRecord | None]:
    """The attempts that made a thing; None for one that cannot be told."""
    if item.kind not in (ATTEMPTS, UNFINISHED, RESULTS) or not item.key:
        return []
    with contextlib.suppress(DamagedRecord):
        if item.kind != UNFINISHED:  # by its name: a list costs a request for each key
            return [ledger.attempt(item.key, item.epoch)]
        return [*ledger.attempts(item.key)] or [None]
    return [None]


def _sum(records: Iterable[AttemptRecord | None], profile: Profile, prices: Mapping[str, Any]) -> RecomputeCost:
    total = RecomputeCost()
    for record in records:
        resources = profile.resources.get(record.node) if record else None
        if record is None or resources is None or not record.ended_at:
            total += RecomputeCost(unknown=1)
            continue
        ended, started = datetime.fromisoformat(record.ended_at), datetime.fromisoformat(record.started_at)
        seconds = max(0.0, (ended - started).total_seconds())
        hours = seconds / 3600 * resources.nodes
        gpu_hours, core_hours = hours * resources.gpus, hours * resources.cpus
        dollars = gpu_hours * prices["gpu"]["dollars_per_hour"]
        dollars = dollars or core_hours * prices["cpu"]["dollars_per_core_hour"]
        total += RecomputeCost(seconds, gpu_hours, core_hours, dollars)
    return total
