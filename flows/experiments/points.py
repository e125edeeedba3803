"""The points of a sweep: settings that are tried beside each other, each an experiment of its own.

points("lr", ["pretrain_1.learning_rate=[1e-3, 2e-3]"])        lr.0.001 and lr.0.002
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from flows import profiles
from flows.experiments.naming import begun, check_name, pinned
from flows.override_values import value_of
from flows.plan import NodePlan, make_plan
from flows.profiles import Profile
from stages.core.errors import ConfigError
from stages.core.graph import Pipeline
from stages.core.keys import canonical_json, sha256
from stages.core.ledger import Ledger

MOST = 100
"""Points of one sweep: a slip in a grid is not to begin a thousand trainings."""
LABEL = 40
"""Characters of a point's own part of its name; longer ones are numbered."""


@dataclass(frozen=True)
class Point:
    """One experiment of a sweep. overrides: all of its settings, the sweep's own first; varied: those of this point."""

    name: str
    overrides: tuple[str, ...]
    varied: tuple[str, ...]

    @property
    def settings(self) -> str:
        """Its own settings, for people."""
        return " ".join(self.varied)


def points(name: str, grid: Sequence[str], listed: Sequence[str] = (), common: Sequence[str] = ()) -> list[Point]:
    """The points of a sweep. grid: `node.field=[value, ..]`, all combinations of which are points; listed: points of
    their own, each `node.field=value node.field=value ..`; common: settings of all. Raises ConfigError.
    """
    check_name("sweep", name)
    rows = [tuple(row) for row in itertools.product(*(_axis(each) for each in grid))] if grid else []
    rows += [_listed(each) for each in listed]
    if not rows:
        raise ConfigError("sweep: give --grid node.field=[value, value], or --point 'node.field=value ..', or both")
    if len(rows) > MOST:
        raise ConfigError(f"sweep {name}: these are {len(rows)} points, and {MOST} are allowed: leave values out")
    labels = [_label(row) for row in rows]
    if twice := [row for number, row in enumerate(rows) if row in rows[:number]]:
        raise ConfigError(f"sweep {name}: the point {' '.join(twice[0])} is there twice")
    numbered = len(set(labels)) < len(labels) or max(map(len, labels)) > LABEL
    return [
        Point(f"{name}.{number if numbered else label}", (*common, *row), row)
        for number, (label, row) in enumerate(zip(labels, rows, strict=True), 1)
    ]


def open_points(
    ledger: Ledger, profile: str, pipeline: Pipeline, of_sweep: Sequence[Point], why: str = "", begin: bool = True
) -> list[Profile]:
    """The settings of each point. begin: record those that are new as experiments; else they are looked at alone.
    Raises ConfigError before anything is recorded where one cannot be.
    """
    values = [profiles.load(profile, pipeline, pinned(ledger, point.overrides)) for point in of_sweep]
    if not begin:
        return values
    return [begun(ledger, point.name, profile, pipeline, point.overrides, why) for point in of_sweep]


def plan_points(
    ledger: Ledger, pipeline: Pipeline, of_sweep: Sequence[Point], values: Sequence[Profile], select: str, force: bool
) -> list[dict[str, Any]]:
    """What each point would run, as JSON values: `{point, settings, run, shared, answered}`, lists of nodes. shared:
    what an earlier point makes, too, and this one takes from it.
    """
    rows: list[dict[str, Any]] = []
    earlier: set[str] = set()
    for point, one in zip(of_sweep, values, strict=True):
        plans = make_plan(pipeline, one, ledger, select, force)
        marks = _marks(one.wire(pipeline), one, plans)
        run = {plan.node.name for plan in plans if plan.will_run}
        shared = {name for name in run if marks[name] in earlier}
        earlier |= {marks[name] for name in run}
        blocked = [f"{plan.node.name}: {plan.reason}" for plan in plans if plan.state.value in ("blocked", "damaged")]
        rows.append(
            {
                "point": point.name,
                "settings": list(point.varied),
                "run": [plan.node.name for plan in plans if plan.node.name in run - shared],
                "shared": [plan.node.name for plan in plans if plan.node.name in shared],
                "answered": [plan.node.name for plan in plans if not plan.will_run and plan.resolved],
                "blocked": blocked,
            }
        )
    return rows


def _marks(pipeline: Pipeline, values: Profile, plans: Sequence[NodePlan]) -> Mapping[str, str]:
    """What stands for the key of each node, also of one whose key is not known yet: two that are equal will have one
    result.
    """
    keys = {plan.node.name: plan.key for plan in plans if plan.key}
    marks: dict[str, str] = {}
    for node in pipeline:
        wires = {port: [(marks[s.node.name], s.port) for s in sources] for port, sources in node.wires.items()}
        identity = [node.stage, node.revision, values.configs[node.name].identity(), wires]
        marks[node.name] = keys.get(node.name) or sha256(canonical_json(identity))
    return marks


def _axis(text: str) -> list[str]:
    """The settings of one axis of a grid."""
    path, equals, given = text.partition("=")
    given_values = value_of(given) if equals else None
    values = cast("list[Any]", given_values) if isinstance(given_values, list) else []
    if not path.strip() or not values:
        raise ConfigError(f"--grid {text}: write node.field=[value, value], for example pretrain_1.beta2=[0.95, 0.99]")
    return [f"{path.strip()}={json.dumps(value)}" for value in values]


def _listed(text: str) -> tuple[str, ...]:
    try:
        row = tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigError(f"--point {text}: {error}") from error
    if not row or not all("=" in each for each in row):
        raise ConfigError(f"--point {text!r}: write node.field=value, several with spaces between them")
    return row


def _label(row: Sequence[str]) -> str:
    """The values of a point, as a part of its name."""
    values = (each.partition("=")[2].strip("\"'") for each in row)
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", value).strip("_") or "none" for value in values)
