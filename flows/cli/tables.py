"""`moxin tables`: the paper's tables from the newest results."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from flows.cli.common import (
    ExperimentOption,
    JsonOption,
    ProfileOption,
    SetOption,
    open_ledger,
    out,
    print_json,
    read_profile,
    say,
)
from stages.core.errors import ConfigError


def tables(
    profile: ProfileOption = "tiny",
    experiment: ExperimentOption = "",
    set_: SetOption = [],  # noqa: B006
    table: Annotated[int | None, typer.Option("--table", "-t", help="one table alone: 2 to 8")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="print Markdown")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="print CSV: one line a score, with its source")] = False,
    json_: JsonOption = False,
) -> None:
    """Print the paper's tables from a profile's newest results.

    Tables 2 to 8, beside the paper's numbers where comparable. With --set: of the results of these settings.
    """
    from flows import family, table_formats
    from flows import tables as paper_tables
    from flows.console import rows_table
    from flows.experiments import results
    from flows.report.data import collect_scores

    if markdown + csv + json_ > 1:
        raise ConfigError("--json, --csv and --markdown are three forms: choose one")
    names = paper_tables.NAMES if table is None else (f"table_{table}",)
    if names[0] not in paper_tables.NAMES:
        raise ConfigError(f"--table {table}: the paper's tables of scores are 2 to 8")
    with open_ledger() as ledger:
        pipeline, values = read_profile(ledger, profile, experiment, set_)
        models = family.load()
        evaluating = {node for model in models for node in model.evaluations}
        data = collect_scores(ledger, pipeline, results.records(ledger, pipeline, values, evaluating))
    built = [paper_tables.build(data, models, name) for name in names]
    if json_:
        print_json(table_formats.json_value(built, values.names))
    elif csv:
        sys.stdout.write(table_formats.csv_text(built))
    elif markdown:
        sys.stdout.write(table_formats.markdown(built, values.names))
    else:
        for each in built:
            say((table_formats.title(each), "bold"))
            if not each.empty:
                out.print(rows_table(table_formats.plain_rows(each)))
            for note in table_formats.notes(each, values.names):
                say(f"  {note}")
