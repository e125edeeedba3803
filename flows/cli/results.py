"""`moxin ls`, `show`, `logs`, `lineage`, `report`: what runs have made."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.common import (
    ExperimentOption,
    JsonOption,
    KeyOption,
    NodeArgument,
    ProfileOption,
    SetOption,
    find_node,
    open_ledger,
    out,
    print_json,
    read_profile,
    read_result,
    say,
)
from flows.terminal_text import counted, line
from stages.core.errors import ConfigError

if TYPE_CHECKING:
    from stages.core.messages import StageResult


def ls(
    profile: ProfileOption = "tiny",
    experiment: ExperimentOption = "",
    set_: SetOption = [],  # noqa: B006
    json_: JsonOption = False,
) -> None:
    """List the newest artifact of every node.

    Its key, files and bytes, and when it was made. With --set: of these settings.
    """
    from flows.experiments import results

    rows: list[dict[str, Any]] = []
    with open_ledger() as ledger:
        pipeline, values = read_profile(ledger, profile, experiment, set_)
        for name, result in results.of_nodes(ledger, pipeline, values).items():
            for port, manifest in result.outputs.items():
                rows.append(
                    {
                        "node": name,
                        "output": port,
                        "type": manifest.type,
                        "key": result.key[:12],
                        "digest": manifest.digest[:12],
                        "files": manifest.count,
                        "bytes": manifest.size,
                        "made": result.attempt.ended_at[:19],
                    }
                )
    if json_:
        print_json({"profile": values.name, "experiment": values.experiment or None, "artifacts": rows})
        return
    from flows.console import rows_table

    none = f"{results.place(values)} has no artifacts yet; make some with: {results.command(values)}"
    out.print(rows_table(rows) if rows else none)


def show(
    node: NodeArgument,
    profile: ProfileOption = "tiny",
    experiment: ExperimentOption = "",
    set_: SetOption = [],  # noqa: B006
    key: KeyOption = "",
    metrics: Annotated[
        bool, typer.Option("--metrics", help="print its metric rows (loss, ...) as JSON lines, and nothing else")
    ] = False,
    history: Annotated[
        bool, typer.Option("--history", help="every attempt at any of its keys: when, how it ended, by whom")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Show a node's newest result.

    Its configuration, statistics, outputs and provenance. With --set: that of these settings; with --key: that of a
    key.
    """
    from flows.log_lines import StoredLines

    if history:
        _show_history(find_node(node).name, json_)
        return
    with open_ledger() as ledger:
        result = read_result(ledger, node, profile, experiment, set_, key)
        if metrics:
            for row in StoredLines(ledger.store, result.metrics_object) if result.metrics_object else ():
                sys.stdout.write(row.decode() + "\n")
            return
    if json_:
        print_json(result.model_dump(mode="json"))
        return
    _print_result(node, result)


def _print_result(node: str, result: StageResult) -> None:
    from flows.console import rows_table

    attempt = result.attempt
    say((node, "bold"), f" (stage {result.stage}, revision {result.revision})  key {result.key}")
    say(
        f"made {attempt.ended_at} in {attempt.wall_seconds:.1f} s wall, {attempt.cpu_seconds:.1f} s CPU, peak"
        f" {attempt.peak_rss_bytes / 2**20:.0f} MiB; commit {(result.code.git_commit or 'unknown')[:12]}, source"
        f" {result.code.source_digest[:12]}"
    )
    for port, refs in result.inputs.items():
        for ref in refs:
            say(f"  in   {port}: {ref.node}.{ref.port} {ref.manifest.digest[:12]}")
    for port, manifest in result.outputs.items():
        facets = " ".join(f"{k}={str(v)[:16]}" for k, v in sorted(manifest.facets.items()))
        say(
            f"  out  {port}: {manifest.type} {manifest.digest[:12]}, {counted(manifest.count, 'file')},"
            f" {manifest.size:,} bytes  ",
            (facets, "dim"),
        )
    out.print(rows_table([{"setting": k, "value": json.dumps(v)} for k, v in result.config.items()]))
    out.print(
        rows_table([{"statistic": k, "value": json.dumps(v, ensure_ascii=False)} for k, v in result.stats.items()])
    )


def _show_history(node: str, json_: bool) -> None:
    from flows.console import rows_table
    from flows.experiments import history
    from flows.local_services.prefect import call_api
    from flows.settings import Settings
    from stages.core.errors import InfraError

    settings = Settings.load()
    with open_ledger(settings) as ledger:
        try:
            entries = history.of_node(ledger, node, history.starters(functools.partial(call_api, settings)))
        except InfraError:  # the server is away: who started what is not known
            entries = history.of_node(ledger, node)
    if json_:
        print_json({"node": node, "attempts": [entry.row() for entry in entries]})
        return
    rows = [
        {
            "started": entry.started_at[:19].replace("T", " "),
            "ended": (entry.ended_at or "")[11:19],
            "key": entry.key[:12],
            "attempt": entry.epoch,
            "end": entry.ended,
            "by": entry.by,
            "now of": ", ".join(entry.names),
            "": entry.message,
        }
        for entry in entries
    ]
    out.print(rows_table(rows) if rows else f"nobody has worked on {node} yet")


def logs(
    node: NodeArgument,
    profile: ProfileOption = "tiny",
    experiment: ExperimentOption = "",
    set_: SetOption = [],  # noqa: B006
    key: KeyOption = "",
    all_: Annotated[bool, typer.Option("--all", help="also what libraries printed (level debug)")] = False,
    json_: JsonOption = False,
) -> None:
    """Print the log of a node's newest attempt, finished or not.

    With --set: of these settings; with --key: of this key.
    """
    from flows.settings import Settings

    settings = Settings.load()
    with open_ledger(settings) as ledger:
        pipeline, values = read_profile(ledger, profile, experiment, set_)
        for text in _log_lines(ledger, settings.home, pipeline, values, find_node(node).name, key):
            _say_event(text, all_, json_)


def _say_event(row: bytes, all_: bool, json_: bool) -> None:
    from flows.live.attempt_events import parsed

    event: dict[str, Any] = parsed(row)
    if not {"event", "time"} <= event.keys():  # a piece of a line that was too long for one
        event = dict[str, Any](time="", event="log", level="debug", message=row.decode("utf-8", "replace"))
    if json_:
        sys.stdout.write(json.dumps(event, ensure_ascii=False) + "\n")
    elif event["event"] == "log" and (all_ or event.get("level") != "debug"):
        say((event["time"][11:19], "dim"), f" {event['level']:<7} {event['message']}")
    elif event["event"] == "metric":
        say(
            (event["time"][11:19], "dim"),
            f" step {event['step']} " + " ".join(f"{k}={v:.4g}" for k, v in event["values"].items()),
        )
    elif event["event"] == "done":
        say((event["time"][11:19], "dim"), f" {event['exit']} {event['message']}")


def _log_lines(ledger: Any, home: Path, pipeline: Any, values: Any, node: str, key: str) -> Iterator[bytes]:
    """The events of a node's newest attempt: from this machine while it runs, from the store afterwards."""
    from flows.experiments import results
    from flows.live.attempt_events import log_of

    for each in results.keys(ledger, pipeline, values, node, key):
        for attempt in reversed(ledger.attempts(each)):
            if (lines := log_of(ledger, home, attempt)) is not None:
                yield from lines
                return
    raise ConfigError(f"node {node} has no attempt in {results.place(values)} yet")


def lineage(
    node: NodeArgument,
    profile: ProfileOption = "tiny",
    experiment: ExperimentOption = "",
    set_: SetOption = [],  # noqa: B006
    key: KeyOption = "",
    json_: JsonOption = False,
) -> None:
    """Show all that a node's newest result was made from.

    Up to the raw sources.
    """
    from flows.plan import origin

    with open_ledger() as ledger:
        root = read_result(ledger, node, profile, experiment, set_, key)

        shown: set[str] = set()

        def walk(result: Any) -> dict[str, Any]:
            above = result.key in shown  # once: there are as many ways to a source as products of all that lies between
            shown.add(result.key)
            parents: dict[str, None] = dict.fromkeys(ref.key for refs in result.inputs.values() for ref in refs)
            return {
                "node": result.node,
                "stage": result.stage,
                "key": result.key,
                "commit": result.code.git_commit,
                "adopted_from": origin(result),
                "above": above,
                "inputs": [] if above else [walk(stored[0]) for key in parents if (stored := read(key))],
            }

        read = functools.cache(ledger.manifest)
        tree_root = walk(root)
    if json_:
        print_json(tree_root)
        return
    from rich.tree import Tree

    def draw(value: dict[str, Any], tree: Tree | None = None) -> Tree:
        place = f", adopted from {value['adopted_from']}" if value["adopted_from"] else ""
        above = " (above)" if value["above"] else ""
        label = line(f"{value['node']} ", (value["key"][:12] + place + above, "dim"))
        branch = tree.add(label) if tree else Tree(label)
        for parent in value["inputs"]:
            draw(parent, branch)
        return branch

    out.print(draw(tree_root))


def report(
    profile: ProfileOption = "tiny",
    experiment: ExperimentOption = "",
    set_: SetOption = [],  # noqa: B006
    output: Annotated[Path | None, typer.Option("--output", "-o", help="where to write the HTML page")] = None,
    json_: JsonOption = False,
) -> None:
    """Write the report of a profile's newest results.

    Loss curves, the ablation table, dedup statistics. With --set: of the results of these settings.
    """
    from flows import report as reports
    from flows.experiments import results
    from flows.release.mof_evidence import released
    from flows.settings import Settings

    settings = Settings.load()
    with open_ledger(settings) as ledger:
        pipeline, values = read_profile(ledger, profile, experiment, set_)
        shown = results.records(ledger, pipeline, values)
        data = reports.collect(ledger, values.names, pipeline, values, shown)
    data["releases"] = released(settings.home / "release" / values.names)
    if json_:
        print_json(data)
        return
    path = output or settings.home / "report" / f"{values.names}.html"
    reports.write(data, path, settings.home / "pictures")
    for text in reports.summary(data):
        say(text)
    say(f"report: {path}")
