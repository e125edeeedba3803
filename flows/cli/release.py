"""`moxin release`: the family as folders ready to publish, and a push of them to a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.common import ExperimentOption, JsonOption, ProfileOption, open_ledger, print_json, read_profile, say
from flows.terminal_text import counted
from stages.core.errors import ConfigError

REPORT_TITLE = "<title>Moxin: run report"
"""What a report begins with (flows/report/templates/page.html)."""


def release(
    profile: ProfileOption = "tiny",
    experiment: ExperimentOption = "",
    model: Annotated[
        list[str], typer.Option("--model", "-m", help="node of a model of infra/family.toml (repeat); else Table 9's")
    ] = [],  # noqa: B006
    out_dir: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="where the folders go; else release/<profile> of the state folder"),
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", help="user or organization of the hub (HF_ENDPOINT) that gets the folders")
    ] = None,
    yes: Annotated[
        bool | None, typer.Option("--yes/--dry-run", help="with --push: send it, or print what would be sent")
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option("--sign", metavar="KEY.pem", help="sign statements and folders with this private key (EC)"),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Write the family's models as folders ready to publish.

    Weights, tokenizer, licence, card; pushed if asked.
    """
    from flows import family
    from flows import report as reports
    from flows.release import build, mof_evidence, publish
    from flows.settings import Settings

    if push is None and yes is not None:
        raise ConfigError("--dry-run and --yes say how to push: name who gets it with --push OWNER")
    if push is not None:
        publish.check_owner(push)
        if yes is None:
            raise ConfigError(f"--push {push}: say --dry-run, to see what would be sent, or --yes, to send it")
    settings = Settings.load()
    with open_ledger(settings) as ledger:
        pipeline, values = read_profile(ledger, profile, experiment)
        models = family.load(pipeline)
        target = (out_dir or settings.home / "release" / values.names).resolve()
        lineages = build.prepare(ledger, values.names, models, model)
        _write_report(reports.collect(ledger, values.names, pipeline, values), target / mof_evidence.REPORTS[0])
        done = build.write(ledger, values, models, lineages, build.Target(target, push, key=sign))
    if not json_:
        _say_models(done)
    send = publish.push if yes else publish.preview
    pushed = [send(one.path, f"{push}/{one.name}") for one in done.models] if push else []
    if json_:
        print_json(_value(values.names, done, pushed))
        return
    for one in pushed:
        _say_push(one)


def _write_report(data: Any, path: Path) -> None:
    """The run's report beside the models: the technical report that the Model Openness Framework asks for. Raises
    ConfigError where a page is there that is no report of ours.
    """
    from flows import report as reports

    if path.is_file() and REPORT_TITLE not in path.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise ConfigError(f"{path} is there already, and is no report of 'moxin report': move it away")
    reports.write(data, path)


def _say_models(done: Any) -> None:
    for one in done.models:
        say(
            (one.name, "bold"),
            f": {one.node} {one.digest[:12]}, {counted(len(one.files), 'file')}, {one.size:,} bytes  {one.path}",
        )
        _say_openness(done.openness[one.name])
    if done.data:
        say(f"data cards: {', '.join(done.data)}")


def _say_openness(openness: Any) -> None:
    say(f"  openness: {openness.title}" + ("; for the next class:" if openness.missing else ""))
    for component, why in openness.missing.items():
        say(f"    {component}: {why}")


def _say_push(push: Any) -> None:
    verb = "pushed" if push.commit else "would push"
    known = {True: "", False: ", a new repository", None: ", which cannot be reached now"}
    state = f", commit {push.commit[:12]}" if push.commit else known[push.exists]
    say(
        (push.repository, "bold"),
        f": {verb} {counted(len(push.send), 'file')}, {push.size:,} bytes to {push.endpoint}{state}",
    )
    for path, size in push.send:
        say(f"  {size:>15,}  {path}")
    for path in push.remove:
        say(f"  {'removed':>15}  {path}")


def _value(profile: str, done: Any, pushed: list[Any]) -> dict[str, Any]:
    return {
        "profile": profile,
        "models": [
            {"name": one.name, "node": one.node, "digest": one.digest, "folder": str(one.path), "bytes": one.size,
             "files": dict(one.files), "split_anew": one.weights.split_anew,
             "openness": _openness(done.openness[one.name])}
            for one in done.models
        ],
        "data": {node: str(path) for node, path in done.data.items()},
        "pushes": [push.row() for push in pushed],
    }  # fmt: skip


def _openness(openness: Any) -> dict[str, Any]:
    return {"class": openness.level, "title": openness.title, "missing": dict(openness.missing)}
