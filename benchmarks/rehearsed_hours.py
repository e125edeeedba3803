"""What rehearsals foretell of a profile against what its run took: every node, by the wall and by the processors.

    python -m benchmarks.rehearsed_hours [--profile tiny] [--select full] [--only-table]

It rehearses at both levels, notes what they foretell, runs, and prints a table: for each node what was foretold before
anything had run, what is foretold once its inputs are there (as a later `moxin plan` does), and what it took. An
installation of its own (MOXIN_HOME, or else .moxin/benchmark): begin with an empty one, on an idle machine. `tiny`
takes an hour on two slow cores. --only-table: of what an installation has already rehearsed and run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.orchestration import machine
from flows import profiles
from flows.empty_ledger import EmptyLedger
from flows.plan import make_plan
from flows.profiles import Profile
from flows.rehearsal import planning, report
from flows.rehearsal.report import Forecast
from flows.settings import Settings
from stages.core.files import ROOT
from stages.core.ledger import Ledger
from stages.core.messages import Attempt
from stages.core.store import Store
from stages.pipeline import PIPELINE

HEAD = (
    "| node | wall: before s | with inputs s (from, to) | took s | off | processors: before s | with inputs s | took s"
    " | off |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--select", default="full")
    parser.add_argument("--only-table", action="store_true")
    given = parser.parse_args()
    os.environ.setdefault("MOXIN_HOME", str(ROOT / ".moxin" / "benchmark"))
    for line in machine():
        print(line)
    moxin("up")
    what = ["--profile", given.profile, "--select", given.select]
    if not given.only_table:
        for command in (["rehearse", "--level", "wiring"], ["rehearse", "--level", "shape"], ["run"]):
            moxin(*command, *what)
    settings = Settings.load()
    os.environ.update(settings.store_environment())
    for line in table(profiles.load(given.profile, PIPELINE), given.select, Ledger(Store(settings.store))):
        print(line)
    moxin("down")


def moxin(*arguments: str) -> None:
    """Run a command of ours; what fails in it is part of the table."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "flows.cli", *arguments], cwd=ROOT, check=False)
    print(f"- `moxin {' '.join(arguments)}`: {time.monotonic() - started:,.0f} s, exit {done.returncode}")


def foretold(
    profile: Profile, select: str, ledger: Ledger, store: Store, force: bool = False
) -> Mapping[str, Forecast]:
    """By the rehearsals of a profile, as a plan against this ledger is."""
    return planning.forecasts(
        make_plan(PIPELINE, profile, ledger, select, force), profile, report.read_all(store, profile.name)
    )


def table(profile: Profile, select: str, ledger: Ledger) -> Iterator[str]:
    """The comparison as Markdown: nodes that ran, what nothing was foretold of among them."""
    before = foretold(profile, select, EmptyLedger(), ledger.store)
    took: dict[str, Attempt] = {}
    for name, record in ledger.nodes(profile.names).items():
        if (result := ledger.manifest(record.key)) is not None:
            took[name] = result[0].attempt
    rows: list[Row] = []
    for node in PIPELINE.under(profile.configs).select(select):
        if one := took.get(node.name):
            later = foretold(profile, node.name, ledger, ledger.store, force=True)
            rows.append(Row(node.name, before.get(node.name), later.get(node.name), one))
    yield HEAD
    yield from (row.markdown() for row in rows)
    for what, forecasts in (("before", [row.before for row in rows]), ("with inputs", [row.later for row in rows])):
        both = [(one, row.took) for row, one in zip(rows, forecasts, strict=True) if one is not None]
        wall = off(sum(one.seconds[1] for one, _ in both), sum(attempt.wall_seconds for _, attempt in both))
        cores = off(sum(one.core_hours for one, _ in both) * 3600, sum(attempt.cpu_seconds for _, attempt in both))
        yield f"- all {len(both)} of {len(rows)} nodes that were foretold {what}: wall {wall}, processors {cores}"
    known = [row for row in rows if row.later]
    within = sum(row.later.seconds[0] <= row.took.wall_seconds <= row.later.seconds[2] for row in known if row.later)
    yield f"- within their intervals by the wall: {within} of {len(known)}"


@dataclass(frozen=True)
class Row:
    """One node."""

    name: str
    before: Forecast | None
    later: Forecast | None
    took: Attempt

    def markdown(self) -> str:
        wall, cores = self.took.wall_seconds, self.took.cpu_seconds
        cells = [self.name, f"{self.before.seconds[1]:.0f}" if self.before else ""]
        if (one := self.later) is None:
            return "| " + " | ".join([*cells, "", f"{wall:.0f}", "", "", "", f"{cores:.0f}", ""]) + " |"
        cells += [f"{one.seconds[1]:.0f} ({one.seconds[0]:.0f}, {one.seconds[2]:.0f})", f"{wall:.0f}"]
        cells += [off(one.seconds[1], wall), f"{self.before.core_hours * 3600:.0f}" if self.before else ""]
        cells += [f"{one.core_hours * 3600:.0f}", f"{cores:.0f}", off(one.core_hours * 3600, cores)]
        return "| " + " | ".join(cells) + " |"


def off(foretold: float, took: float) -> str:
    """By how much what was foretold is above what it took."""
    return f"{foretold / took - 1:+.0%}" if took else ""


if __name__ == "__main__":
    main()
