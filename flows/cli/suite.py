"""`moxin suite`: the shipped suites of tasks, and a user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.common import JsonOption, out, print_json, say
from flows.terminal_text import line

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Suites of evaluation tasks: the shipped ones, and your own."
)


@app.command("list")
def list_(json_: JsonOption = False) -> None:
    """List the suites of the project, one for a table of the paper."""
    from stages.lib.evaluation import suite_file

    suites = [suite_file.load(name) for name in suite_file.shipped()]
    if json_:
        keys = ("name", "title", "table", "harness")
        print_json([{key: getattr(s, key) for key in keys} | {"tasks": len(s.tasks)} for s in suites])
        return
    for suite in suites:
        say((suite.name, "bold"), f": {suite.title or suite.source} ({len(suite.tasks)} tasks, {suite.harness})")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="a shipped suite, or a file that ends in .toml")],
    json_: JsonOption = False,
) -> None:
    """Show one suite: its tasks, and their settings."""
    from stages.lib.evaluation import suite_file

    suite = suite_file.load(name)
    if json_:
        print_json(suite.model_dump(mode="json"))
        return
    version = f" {suite.harness_version}" if suite.harness_version else ""
    say((suite.name, "bold"), f": {suite.title}" if suite.title else "", f" ({suite.harness}{version})")
    if suite.source:
        say(f"  {suite.source}")
    for entry in suite.tasks:
        settings = entry.model_dump(exclude_defaults=True, exclude={"task"})
        described = ", ".join(f"{key} {value}" for key, value in settings.items())
        say(f"  {entry.task}", f": {described}" if described else "")


@app.command()
def add(
    tasks: Annotated[list[str], typer.Argument(help="tasks or groups of the harness, by its names of them")],
    harness: Annotated[str, typer.Option(help="whose tasks these are")] = "lm-evaluation-harness",
    file: Annotated[Path, typer.Option(help="suite file to make or to extend")] = Path("my_suite.toml"),
    from_: Annotated[str, typer.Option("--from", help="'hub', a folder, or s3://bucket/prefix: where the data is")] = (
        "hub"
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="write nothing; print what would be written")] = False,
    json_: JsonOption = False,
) -> None:
    """Add tasks of a harness to a suite file.

    Looks them up in the harness's index, and says which data sets to mirror.
    """
    from flows import suite_files

    looked_up = suite_files.look_up(tasks, harness)
    text, added = suite_files.extended(file, looked_up, harness)
    needed = suite_files.needed_data_sets(looked_up, from_)
    if added and not dry_run:
        suite_files.write(file, text)
    if json_:
        _print_json(file, text, added, looked_up, needed, dry_run)
        return
    present = [task.entry.task for task in looked_up if task.entry.task not in added]
    verb = "would add" if dry_run else "added"
    say((str(file), "bold"), f": {verb} {', '.join(added)}" if added else ": nothing to add")
    if present:
        say(f"there already: {', '.join(present)}")
    say("for the profile (infra/profiles/*.toml):")
    for data_set in needed:
        out.print(line(f"\n{data_set.toml}"), soft_wrap=True)


def _print_json(file: Path, text: str, added: list[str], looked_up: Any, needed: Any, dry_run: bool) -> None:
    data_sets = {
        data_set.id: {
            "source": data_set.source.model_dump(mode="json", exclude_none=True) if data_set.source else None,
            "problem": data_set.problem or None,
            "toml": data_set.toml,
        }
        for data_set in needed
    }
    print_json(
        {
            "file": str(file),
            "added": added,
            "tasks": [task.entry.task for task in looked_up],
            "data_sets": data_sets,
            "written": bool(added) and not dry_run,
            "text": text,
        }
    )
