"""Two or more profiles and experiments beside each other: settings, scores, statistics, costs, curves. Plain JSON
values: `moxin compare --json` prints them, flows/experiments/page.py and text.py show them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from flows import cost, profiles
from flows.experiments.naming import DEFAULT_PROFILE, SHOWN, settings_between, split, view
from flows.experiments.results import of_nodes
from flows.log_lines import metric_rows
from flows.profiles import Profile
from flows.report.data import is_newest, read_evaluation
from stages.core.errors import ConfigError
from stages.core.graph import Pipeline
from stages.core.ledger import Ledger
from stages.core.messages import StageResult

CURVES = ("loss", "reward")
"""Metrics that are drawn, where a training logs them."""


@dataclass(frozen=True)
class Side:
    """One of those that are compared. about: its experiment's record."""

    name: str
    values: Profile
    results: Mapping[str, StageResult]
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @cached_property
    def mixed(self) -> dict[str, str]:
        """Nodes whose result was not made from this side's newest results, and why: no table of it is of one run."""
        reasons: dict[str, str] = {}
        for name, result in self.results.items():
            for port, refs in result.inputs.items():
                for ref in refs:
                    if ref.node in reasons:
                        reasons.setdefault(name, f"follows {ref.node}")
                    elif not is_newest(ref, self.results):
                        reasons.setdefault(name, f"its input {port} came from another result of {ref.node}")
        return reasons


def sides(ledger: Ledger, pipeline: Pipeline, names: Sequence[str]) -> list[Side]:
    """Those of these names: an experiment, a profile, or `profile@experiment`. Raises ConfigError where a name is
    unknown or given twice, where one has no results, and where they are of different profiles.
    """
    if len(names) < 2:
        raise ConfigError("compare: give two names at least, of experiments or profiles")
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise ConfigError(f"compare: {twice[0]} is given twice")
    known, chosen = profiles.names(), list[Side]()
    for name in names:
        if name in known:
            values, about = profiles.load(name, pipeline), {}
        else:
            profile, experiment = split(name) if "@" in name else (DEFAULT_PROFILE, name)
            values = view(ledger, pipeline, profile, experiment)
            record = ledger.experiment(experiment)
            about = record.model_dump(mode="json") if record else {}
        results = of_nodes(ledger, pipeline, values)
        if not results:
            raise ConfigError(f"compare: {name} has no results yet")
        chosen.append(Side(name, values, results, about))
    if len(of_profiles := dict.fromkeys(side.values.name for side in chosen)) > 1:
        raise ConfigError(
            f"compare: these are of different profiles ({', '.join(of_profiles)}), which have nothing in common but the"
            " names of their nodes: compare experiments of one profile"
        )
    return chosen


def compare(ledger: Ledger, pipeline: Pipeline, chosen: Sequence[Side]) -> dict[str, Any]:
    """What differs between these. The first is what the others are told against.

    Returns `{sides, settings, nodes, scores, statistics, curves, notes}`: lists of rows whose `values` are in the order
    of the sides, None where a side has none.
    """
    nodes = [_node(name, chosen) for name in pipeline.nodes if any(name in side.results for side in chosen)]
    differing = [row["node"] for row in nodes if not row["same"] and len(row["keys"]) - row["keys"].count(None) > 1]
    first = chosen[0].values
    changed = [(side, settings_between(first, side.values)) for side in chosen[1:]]
    return {
        "sides": [_side(ledger, side, nodes, number) for number, side in enumerate(chosen)],
        "settings": [
            {"side": side.name, "against": chosen[0].name, "change": text} for side, lines in changed for text in lines
        ],
        "nodes": nodes,
        "scores": [row for name in differing for row in _scores(ledger, name, chosen)],
        "statistics": [row for name in differing for row in _statistics(name, chosen)],
        "curves": [curve for name in differing for curve in _curves(ledger, name, chosen)],
        "notes": _notes(chosen, nodes),
    }


def _side(ledger: Ledger, side: Side, nodes: Sequence[Mapping[str, Any]], number: int) -> dict[str, Any]:
    """Who, why, and what its own results cost: those that it does not share with the side before it."""
    prices = cost.prices_of(side.values)
    unshared = [row["node"] for row in nodes if row["keys"][number] and row["keys"][number] not in row["keys"][:number]]
    spent = [cost.measured(side.results[name], side.values.resources[name], prices) for name in unshared]
    return {
        "name": side.name,
        "profile": side.values.name,
        "experiment": side.values.experiment or None,
        "why": side.about.get("why", ""),
        "created_by": side.about.get("created_by"),
        "created_at": side.about.get("created_at"),
        "git_commit": side.about.get("git_commit"),
        "results": len(side.results),
        "own_results": len(unshared),
        "seconds": sum(one.seconds for one in spent),
        "core_hours": sum(one.core_hours for one in spent),
        "gpu_hours": sum(one.gpu_hours for one in spent),
        "dollars": sum(one.dollars for one in spent),
        "mixed": side.mixed,
    }


def _node(name: str, chosen: Sequence[Side]) -> dict[str, Any]:
    keys = [side.results[name].key if name in side.results else None for side in chosen]
    return {"node": name, "keys": keys, "same": len(set(keys)) == 1}


def _scores(ledger: Ledger, name: str, chosen: Sequence[Side]) -> list[dict[str, Any]]:
    """The headline scores of a node's evaluations, each a share with its standard error."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for number, side in enumerate(chosen):
        outputs = side.results[name].outputs if name in side.results else {}
        for port, artifact in outputs.items():
            if artifact.type != "EvalReport":
                continue
            evaluation, _ = read_evaluation(ledger, f"{name}.{port}", artifact)
            for score in evaluation["results"] if evaluation else ():
                if not score["headline"]:
                    continue
                identity = (score["suite"], score["task"], str(score["num_fewshot"]), score["metric"])
                row = rows.setdefault(
                    identity,
                    {
                        "node": name, "suite": score["suite"], "task": score["task"], "shots": score["num_fewshot"],
                        "metric": score["metric"], "toy": score.get("toy", False), "values": [None] * len(chosen),
                    },
                )  # fmt: skip
                row["values"][number] = {"value": score["value"], "stderr": score["stderr"], "n": score["n"]}
    return list(rows.values())


def _statistics(name: str, chosen: Sequence[Side]) -> list[dict[str, Any]]:
    """Numbers that the stage published of its results, where they differ."""
    published = [side.results[name].stats if name in side.results else {} for side in chosen]
    rows: list[dict[str, Any]] = []
    for statistic in dict.fromkeys(key for stats in published for key in stats):
        values = [_number(stats.get(statistic)) for stats in published]
        if any(value is not None for value in values) and len(set(values)) > 1:
            rows.append({"node": name, "statistic": statistic, "values": values})
    return rows


def _number(value: Any) -> float | int | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _curves(ledger: Ledger, name: str, chosen: Sequence[Side]) -> list[dict[str, Any]]:
    """Rows `{step, <metric>}` of each side, where it trained."""
    rows = {
        side.name: metric_rows(ledger.store, side.results[name].metrics_object)
        for side in chosen
        if name in side.results and side.results[name].metrics_object
    }
    return [
        {"node": name, "metric": metric, "series": series}
        for metric in CURVES
        if any((series := {side: _points(points, metric) for side, points in rows.items()}).values())
    ]


def _points(rows: Sequence[Mapping[str, float]], metric: str) -> list[dict[str, float]]:
    return [{"step": row["step"], metric: row[metric]} for row in rows if "step" in row and metric in row]


def _notes(chosen: Sequence[Side], nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader has to know before the numbers."""
    notes: list[str] = []
    for side in chosen:
        if mixed := side.mixed:
            name, why = next(iter(mixed.items()))
            more = f", and {len(mixed) - 1} more nodes" if len(mixed) > 1 else ""
            notes.append(f"{side.name} mixes results of several runs: {name}: {why}{more}; run it again to have one")
    incomplete: dict[str, list[str]] = {}
    for row in nodes:
        for side, key in zip(chosen, row["keys"], strict=True):
            if key is None:
                incomplete.setdefault(side.name, []).append(row["node"])
    for name, missing in incomplete.items():
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        notes.append(f"{name} has no result of {', '.join(missing[:SHOWN])}{more}: nothing is said of these")
    if all(row["same"] or None in row["keys"] for row in nodes):
        notes.append("every result that they have is the same one: nothing differs")
    return notes
