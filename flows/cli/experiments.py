"""`moxin experiments`, `moxin compare`: settings with a name, and what came of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.common import JsonOption, open_ledger, out, print_json, say
from flows.terminal_text import line


def experiments(
    profile: Annotated[str, typer.Option("--profile", "-p", help="those of this profile alone")] = "",
    json_: JsonOption = False,
) -> None:
    """List the experiments: who, when, why, which settings.

    And how many results each has.
    """
    from flows.console import rows_table
    from flows.profiles import names_in

    with open_ledger() as ledger:
        records = [each for each in ledger.experiments() if profile in ("", each.profile)]
        counts = {each.name: ledger.node_count(names_in(each.profile, each.name)) for each in records}
    if json_:
        rows = [each.model_dump(mode="json") | {"results": counts[each.name]} for each in records]
        print_json({"experiments": rows})
        return
    if not records:
        say("no experiments yet; begin one with: moxin run --experiment NAME --set node.field=value")
        return
    out.print(
        rows_table(
            [
                {
                    "experiment": each.name,
                    "profile": each.profile,
                    "results": str(counts[each.name]),
                    "by": each.created_by,
                    "begun": each.created_at[:16].replace("T", " "),
                    "settings": " ".join(each.overrides) or "as the profile",
                    "why": each.why or "-",
                }
                for each in records
            ]
        )
    )


def compare(
    names: Annotated[list[str], typer.Argument(help="experiments or profiles, two or more; the first is the measure")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="where to write the HTML page")] = None,
    json_: JsonOption = False,
) -> None:
    """Compare experiments: settings, scores, statistics, costs.

    Scores have intervals; a page has the curves, too.
    """
    from flows.console import rows_table
    from flows.experiments import compare as comparing
    from flows.experiments import page, text
    from flows.report.page import write
    from flows.settings import Settings
    from stages.pipeline import PIPELINE

    settings = Settings.load()
    with open_ledger(settings) as ledger:
        data = comparing.compare(ledger, PIPELINE, comparing.sides(ledger, PIPELINE, names))
    if json_:
        print_json(data)
        return
    path = output or settings.home / "report" / f"compare-{'-'.join(names)}.html"
    write(page.render(data), path)
    for note in data["notes"]:
        out.print(line(("note:", "yellow"), f" {note}"), soft_wrap=True)
    for title, rows in text.tables(data):
        say((title, "bold"))
        out.print(rows_table(rows))
    say(f"page: {path}")
