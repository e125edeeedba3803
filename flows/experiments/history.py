"""The history of a node's results: every attempt at any of its keys, when and how it ended, by whom, and which names
its result has now.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from flows.experiments.naming import BY
from stages.core.ledger import Ledger
from stages.core.records import AttemptRecord, DamagedRecord, NodeRecord

UUID_FORM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Entry:
    """One attempt."""

    key: str
    epoch: int
    started_at: str
    ended_at: str | None
    ended: str
    """`running`, or the class of its end."""
    message: str
    launcher: str
    run_id: str
    by: str
    """Who started its run; empty: the Prefect server does not say."""
    names: tuple[str, ...]
    """Profiles and experiments whose result of this node is this key's now."""

    def row(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def of_node(
    ledger: Ledger, node: str, who: Callable[[Iterable[str]], Mapping[str, str]] = lambda run_ids: {}
) -> list[Entry]:
    """Oldest first. who: names of people by the runs that they started. Records that cannot be read are left out:
    `moxin repair` names them.
    """
    with ThreadPoolExecutor(8) as pool:
        attempts = pool.map(partial(_attempt, ledger), ledger.attempts_of(node))
        records = [one for one in attempts if one and one.node == node]
    names: dict[str, list[str]] = {}
    for row in ledger.store.list("nodes/"):
        folder, _, file = row.key.removeprefix("nodes/").rpartition("/")
        if file == f"{node}.json" and (record := _name(ledger, folder, node)):
            names.setdefault(record.key, []).append(folder)
    people = who({record.run_id for record in records})
    return [
        Entry(
            one.key, one.epoch, one.started_at, one.ended_at, one.exit_class or "running", one.message, one.launcher,
            one.run_id, people.get(one.run_id, ""), tuple(sorted(names.get(one.key, ()))),
        )
        for one in sorted(records, key=lambda record: (record.started_at, record.epoch))
    ]  # fmt: skip


def _attempt(ledger: Ledger, attempt: tuple[str, int]) -> AttemptRecord | None:
    try:
        return ledger.attempt(*attempt)
    except DamagedRecord:
        return None


def _name(ledger: Ledger, folder: str, node: str) -> NodeRecord | None:
    try:
        return ledger.node(folder, node)
    except DamagedRecord:
        return None


def starters(call: Callable[..., Any]) -> Callable[[Iterable[str]], Mapping[str, str]]:
    """Who started runs, as the Prefect server knows it. call: asks its API, `(method, path, body)`."""

    def who(run_ids: Iterable[str]) -> Mapping[str, str]:
        flow_runs = sorted(filter(UUID_FORM.fullmatch, run_ids))  # what was adopted has no flow run
        body = {"flow_runs": {"id": {"any_": flow_runs}}}
        runs: list[dict[str, Any]] = call("POST", "/flow_runs/filter", body) if flow_runs else []
        return {
            run["id"]: tag.removeprefix(BY) for run in runs for tag in run.get("tags", ()) if str(tag).startswith(BY)
        }

    return who
