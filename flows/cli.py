"""The command line `moxin`: thin commands over the modules beside it.

    moxin run --profile tiny            the whole DAG here, with what it needs started first
    moxin plan --select pretrain_1+     what a run would do, and why
    moxin why pretrain_2                which field, input or code changed
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.markup import escape

from flows.cli_images import app as images_app
from flows.settings import Settings
from stages.core.contracts import ConfigError, StageError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Moxin: the whole way from raw pages to a fully open LLM, as one resumable DAG.")
app.add_typer(images_app, name="images")
PIPE_WIDTH = 200
"""Columns where the output is no terminal: a log or a pipe has no edge to wrap at."""
out = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
err = Console(stderr=True, highlight=False)

ProfileOption = Annotated[str, typer.Option("--profile", "-p", help="values of the run: infra/profiles/<name>.toml")]
SelectOption = Annotated[str, typer.Option("--select", "-s", help="'full', or nodes and stages: 'x', 'x+' (and what follows), '+x' (and what it needs), separated by commas")]
SetOption = Annotated[list[str], typer.Option("--set", help="override: node.field=value (repeat as needed)")]
ForceOption = Annotated[bool, typer.Option("--force", help="run the selected nodes even if the ledger has their results")]
LauncherOption = Annotated[str | None, typer.Option(help="who runs the stages, instead of the profile's choice")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]
NodeArgument = Annotated[str, typer.Argument(help="name of a node")]


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


@contextmanager
def _ledger(settings: Settings | None = None) -> Iterator[Any]:
    from stages.core.ledger import Ledger
    from stages.core.store import Store

    settings = settings or Settings.load()
    os.environ.update(settings.store_environment())
    yield Ledger(Store(settings.store))


def _load(profile: str, overrides: list[str]) -> tuple[Any, Any]:
    from flows import profiles
    from stages.pipeline import PIPELINE

    return PIPELINE, profiles.load(profile, PIPELINE, overrides)


def _node(name: str) -> Any:
    from stages.pipeline import PIPELINE

    if name not in PIPELINE:
        PIPELINE.select(name if name != "full" else "")  # raises with the nearest name
        raise ConfigError(f"'{name}' is a stage, not a node: choose one of {', '.join(n.name for n in PIPELINE if n.stage == name)}")
    return PIPELINE[name]


def _overrides(set_: list[str], launcher: str | None) -> list[str]:
    return [*set_, *([f"launcher={launcher}"] if launcher else [])]


def _plans(profile: str, select: str, overrides: list[str], force: bool = False) -> tuple[list[Any], Any]:
    from flows.plan import make_plan

    pipeline, values = _load(profile, overrides)
    with _ledger() as ledger:
        return make_plan(pipeline, values, ledger, select, force), values


# --- services -------------------------------------------------------------------------------------------------------


def _start_services(quiet: bool = False) -> Settings:
    from flows import deploy, embedded

    settings = embedded.up(after_server=deploy.register, say=(lambda line: None) if quiet else (lambda line: err.print(f"[dim]{line}[/]")))
    os.environ.update(settings.environment())
    return settings


@app.command()
def up(json_: JsonOption = False) -> None:
    """Start the object store, the Prefect server and a worker on this machine (loopback only)."""
    from flows import embedded

    _start_services(quiet=json_)
    _show_status(embedded.status(), json_)


@app.command()
def down(json_: JsonOption = False) -> None:
    """Stop what `moxin up` started. Nothing stored is lost."""
    from flows import embedded

    stopped = embedded.down()
    if json_:
        _print_json({"stopped": stopped})
    else:
        out.print(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


@app.command()
def status(
    password: Annotated[bool, typer.Option("--password", help="print what the Prefect pages ask for, and nothing else")] = False,
    json_: JsonOption = False,
) -> None:
    """Say what is running, and where it listens."""
    from flows import embedded

    if password:
        out.print(embedded.password() or "there is none yet: start the services with 'moxin up'", markup=False)
        return
    _show_status(embedded.status(), json_)


def _show_status(rows: list[Any], json_: bool) -> None:
    from flows.console import rows_table

    values = [dict(row) if isinstance(row, dict) else vars(row) for row in rows]
    if json_:
        _print_json({"services": values})
    elif values:
        out.print(rows_table(values))
    else:
        out.print("nothing is running; start it with: moxin up")


# --- planning -------------------------------------------------------------------------------------------------------


@app.command()
def plan(
    profile: ProfileOption = "tiny",
    select: SelectOption = "full",
    set_: SetOption = [],  # noqa: B006
    force: ForceOption = False,
    launcher: LauncherOption = None,
    json_: JsonOption = False,
) -> None:
    """Show what a run would do with each node, what it would cost, and why."""
    from flows import cost
    from flows.console import plan_table

    with _ledger() as ledger:
        plans, values = _plans(profile, select, _overrides(set_, launcher), force)
        estimates = cost.estimate(plans, values, ledger)
    if json_:
        _print_json({"profile": values.name, "nodes": [p.row() | {"estimate": estimates[p.node.name].row()} for p in plans], "total": cost.total(estimates)})
        return
    out.print(plan_table(plans, {name: e.text() for name, e in estimates.items()}))
    out.print(cost.total_text(estimates, plans))


@app.command()
def why(
    node: NodeArgument, profile: ProfileOption = "tiny", set_: SetOption = [], json_: JsonOption = False  # noqa: B006
) -> None:
    """Say which field, input or code makes a node run (or why it does not)."""
    name = _node(node).name
    plans, _ = _plans(profile, f"+{name}", set_)
    rows = {p.node.name: p for p in plans}
    target = rows[name]
    roots = [p for p in plans if p.will_run and p.state.value != "pending" and p is not target] if target.state.value == "pending" else []
    if json_:
        _print_json(target.row() | {"because": [p.row() for p in roots]})
        return
    out.print(f"{name}: [bold]{target.state.value}[/]: {target.reason}")
    for cause in roots:
        out.print(f"  {cause.node.name}: {cause.state.value}: {cause.reason}")


# --- running --------------------------------------------------------------------------------------------------------


@app.command()
def run(
    profile: ProfileOption = "tiny",
    select: SelectOption = "full",
    set_: SetOption = [],  # noqa: B006
    force: ForceOption = False,
    launcher: LauncherOption = None,
    json_: JsonOption = False,
) -> None:
    """Run the DAG, or a part of it, as a Prefect flow in this terminal. Starts the services that are not up."""
    from stages.core.graph import Pipeline

    overrides = _overrides(set_, launcher)
    pipeline, values = _load(profile, overrides)
    assert isinstance(pipeline, Pipeline)
    chosen = pipeline.select(select)
    if values.settings.plan_only:
        raise ConfigError(f"profile '{profile}' is for planning only as yet: try 'moxin plan --profile {profile}'")
    # Read when Prefect is imported, which registering the deployments does: so before the services.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # the display shows it; the UI keeps it
    os.environ["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] = "30"
    settings = _start_services(quiet=json_)
    state, outcomes, url = _run_flow(profile, select, overrides, force, settings, len(chosen), json_)
    ok = state.is_completed()
    if json_:
        _print_json({"ok": ok, "message": state.message, "url": url, "nodes": outcomes})
    else:
        out.print(f"[{'green' if ok else 'red'}]{'done' if ok else state.name.lower()}[/]: {state.message}")
        out.print(f"[dim]{url}[/]")
    if not ok:
        raise typer.Exit(1)


def _run_flow(
    profile: str, select: str, overrides: list[str], force: bool, settings: Settings, nodes: int, quiet: bool
) -> tuple[Any, list[dict[str, Any]], str]:
    """Run the flow in this process, with a display; its final state, the nodes' outcomes and its page."""
    from flows import moxin as flow_module
    from flows.console import RunDisplay

    recorder = _Recorder()
    console = Console(quiet=True) if quiet else out
    with RunDisplay(console, nodes) as display:
        flow_module.EXTRA_OBSERVERS[:] = [display, recorder]
        state = flow_module.moxin(
            profile=flow_module.ProfileName(profile), select=select, force=force, set=overrides, return_state=True
        )
    run_id = state.state_details.flow_run_id
    return state, list(recorder.rows.values()), f"{settings.prefect_ui_url}/runs/flow-run/{run_id}"


class _Recorder:
    """Keeps each node's last state for --json."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}

    def event(self, node: str, event: Any) -> None:
        if event["event"] == "state":
            self.rows[node] = {"name": node, **{k: v for k, v in event.items() if k != "event"}}


# --- looking --------------------------------------------------------------------------------------------------------


def _last_result(ledger: Any, profile: str, node: str) -> Any:
    record = ledger.node(profile, _node(node).name)
    found = ledger.manifest(record.key) if record else None
    if found is None:
        raise ConfigError(f"node {node} has no result in profile '{profile}' yet: run it with 'moxin run --select {node}'")
    return found[0]


@app.command(name="ls")
def ls(profile: ProfileOption = "tiny", json_: JsonOption = False) -> None:
    """List the newest artifact of every node: key, files, bytes, when it was made."""
    from flows.console import rows_table
    from stages.pipeline import PIPELINE

    rows = []
    with _ledger() as ledger:
        records = ledger.nodes(profile)
        for node in PIPELINE:
            found = ledger.manifest(records[node.name].key) if node.name in records else None
            if found is not None:
                for port, manifest in found[0].outputs.items():
                    rows.append({"node": node.name, "output": port, "type": manifest.type, "key": found[0].key[:12], "digest": manifest.digest[:12], "files": len(manifest.files), "bytes": manifest.size, "made": found[0].attempt.ended_at[:19]})
    if json_:
        _print_json({"profile": profile, "artifacts": rows})
    else:
        out.print(rows_table(rows) if rows else f"profile '{profile}' has no artifacts yet; make some with: moxin run --profile {profile}")


@app.command()
def show(
    node: NodeArgument,
    profile: ProfileOption = "tiny",
    metrics: Annotated[bool, typer.Option("--metrics", help="print its metric rows (loss, ...) as JSON lines, and nothing else")] = False,
    json_: JsonOption = False,
) -> None:
    """Show a node's newest result: configuration, statistics, outputs, provenance."""
    from flows.console import rows_table

    with _ledger() as ledger:
        result = _last_result(ledger, profile, node)
        if metrics:
            found = ledger.store.get(result.metrics_object) if result.metrics_object else None
            sys.stdout.write(found[0].decode() if found else "")
            return
    if json_:
        _print_json(result.model_dump(mode="json"))
        return
    attempt = result.attempt
    out.print(f"[bold]{node}[/] (stage {result.stage}, revision {result.revision})  key {result.key}")
    out.print(f"made {attempt.ended_at} in {attempt.wall_seconds:.1f} s wall, {attempt.cpu_seconds:.1f} s CPU, peak {attempt.peak_rss_bytes / 2**20:.0f} MiB; commit {(result.code.git_commit or 'unknown')[:12]}, source {result.code.source_digest[:12]}")
    for port, refs in result.inputs.items():
        for ref in refs:
            out.print(f"  in   {port}: {ref.node}.{ref.port} {ref.manifest.digest[:12]}")
    for port, manifest in result.outputs.items():
        facets = " ".join(f"{k}={str(v)[:16]}" for k, v in sorted(manifest.facets.items()))
        out.print(f"  out  {port}: {manifest.type} {manifest.digest[:12]}, {len(manifest.files)} files, {manifest.size:,} bytes  [dim]{facets}[/]")
    out.print(rows_table([{"setting": k, "value": json.dumps(v)} for k, v in result.config.items()]))
    out.print(rows_table([{"statistic": k, "value": json.dumps(v, ensure_ascii=False)} for k, v in result.stats.items()]))


@app.command()
def logs(
    node: NodeArgument,
    profile: ProfileOption = "tiny",
    all_: Annotated[bool, typer.Option("--all", help="also what libraries printed (level debug)")] = False,
    json_: JsonOption = False,
) -> None:
    """Print the log of a node's newest attempt, finished or not."""
    lines = _log_lines(Settings.load(), profile, _node(node).name)
    for line in lines:
        event = json.loads(line)
        if json_:
            sys.stdout.write(line.rstrip("\n") + "\n")
        elif event["event"] == "log" and (all_ or event.get("level") != "debug"):
            out.print(f"[dim]{event['time'][11:19]}[/] {event['level']:<7} {event['message']}", markup=True)
        elif event["event"] == "metric":
            out.print(f"[dim]{event['time'][11:19]}[/] step {event['step']} " + " ".join(f"{k}={v:.4g}" for k, v in event["values"].items()))
        elif event["event"] == "done":
            out.print(f"[dim]{event['time'][11:19]}[/] {event['exit']} {event['message']}")


def _log_lines(settings: Settings, profile: str, node: str) -> list[str]:
    """The events of a node's newest attempt: from this machine while it runs, from the store afterwards."""
    with _ledger(settings) as ledger:
        keys = {p.key for p in _plans(profile, f"+{node}", [])[0] if p.node.name == node and p.key}
        record = ledger.node(profile, node)
        for key in [*keys, *([record.key] if record else [])]:
            for attempt in reversed(ledger.attempts(key)):
                local = settings.home / "logs" / "stages" / key / f"{attempt.epoch:06d}.jsonl"
                if local.is_file():
                    return local.read_text(encoding="utf-8").splitlines()
                if (found := ledger.store.get(ledger.log_key(key, attempt.epoch))) is not None:
                    return found[0].decode().splitlines()
    raise ConfigError(f"node {node} has no attempt in profile '{profile}' yet")


@app.command()
def lineage(node: NodeArgument, profile: ProfileOption = "tiny", json_: JsonOption = False) -> None:
    """Show everything that a node's newest result was made from, up to the raw sources."""
    from rich.tree import Tree

    with _ledger() as ledger:
        root = _last_result(ledger, profile, node)

        def walk(result: Any) -> dict[str, Any]:
            parents = {ref.key: ref for refs in result.inputs.values() for ref in refs}
            found = [ledger.manifest(key) for key in parents]
            return {"node": result.node, "stage": result.stage, "key": result.key, "commit": result.code.git_commit, "inputs": [walk(f[0]) for f in found if f]}

        made = walk(root)
    if json_:
        _print_json(made)
        return
    seen: set[str] = set()

    def draw(value: dict[str, Any], tree: Tree | None = None) -> Tree:
        label = f"{value['node']} [dim]{value['key'][:12]}[/]" + (" [dim](above)[/]" if value["key"] in seen else "")
        branch = tree.add(label) if tree else Tree(label)
        if value["key"] not in seen:
            seen.add(value["key"])
            for parent in value["inputs"]:
                draw(parent, branch)
        return branch

    out.print(draw(made))


@app.command()
def report(
    profile: ProfileOption = "tiny",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="where to write the HTML page")] = None,
    json_: JsonOption = False,
) -> None:
    """Write the report of a profile's newest results: loss curves, the ablation table, dedup statistics."""
    from flows import report as reports

    settings = Settings.load()
    pipeline, values = _load(profile, [])
    with _ledger(settings) as ledger:
        data = reports.collect(ledger, profile, pipeline, values)
    if json_:
        _print_json(data)
        return
    path = output or settings.home / "report" / f"{profile}.html"
    reports.write(data, path)
    for line in reports.summary(data):
        out.print(line)
    out.print(f"report: {path}")


@app.command()
def check(
    write: Annotated[bool, typer.Option("--write", help="bring the derived files up to date instead of complaining")] = False,
    json_: JsonOption = False,
) -> None:
    """Check the pipeline, every profile, and that the files derived from them are not stale."""
    from flows import derived

    problems = derived.check(write)
    if json_:
        _print_json({"ok": not problems, "problems": problems})
    else:
        for problem in problems:
            err.print(f"[red]{problem}[/]")
        out.print("stale" if problems else "the pipeline, its profiles and the derived files are in order")
    if problems:
        raise typer.Exit(1)


def main() -> None:
    """Entry point: a user's mistake is one line on standard error and status 2; other failures are status 1."""
    try:
        code = app(standalone_mode=False)
        if code == 130:
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except typer.TyperException as error:  # an unknown command or option, a missing argument; without any: the help
        if not sys.argv[1:]:
            cast(Any, error).show()  # typer's NoArgsIsHelpError, a class that it does not export
            sys.exit(0)
        _fail(f"{error.format_message()} (see 'moxin --help')", 2)
    except ConfigError as error:
        _fail(str(error), 2)
    except StageError as error:
        _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        err.print("interrupted; what had finished is in the ledger, the next run continues from there")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)


def _fail(message: str, code: int) -> None:
    err.print(f"[red]error:[/] {escape(message)}", soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
