"""`moxin repair`: what of the ledger is damaged, and what can be done about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.common import JsonOption, open_ledger, print_json

if TYPE_CHECKING:
    from flows.repair import Finding


def repair(
    apply_: Annotated[bool, typer.Option("--apply", help="do what is said, instead of saying it only")] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="read every object and checkpoint, and compare its SHA-256")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Find what is damaged in the store; mend it with --apply.

    Damaged records, lost objects, torn checkpoints, attempts without an end.
    """
    from flows.repair import apply, examine

    with open_ledger() as ledger:
        findings = examine(ledger, deep)
        done = apply(findings) if apply_ else []
        aside = [row.size for row in ledger.store.list("damaged/")]
    if json_:
        rows = [finding.row() | {"done": finding in done} for finding in findings]
        print_json({"findings": rows, "applied": apply_, "aside": {"objects": len(aside), "bytes": sum(aside)}})
    else:
        for line in _lines(findings, done, apply_):
            typer.echo(line)
        if aside:
            typer.echo(
                f"damaged/ holds {len(aside)} objects, {sum(aside):,} bytes: nobody reads them; delete them when you"
                " need them no more"
            )
    if len(done) < len(findings):
        raise typer.Exit(1)


def _lines(findings: list[Finding], done: list[Finding], applied: bool) -> Iterator[str]:
    for finding in findings:
        yield f"{finding.object}: {finding.what}\n    {'done: ' if finding in done else ''}{finding.action}"
    if not findings:
        yield "nothing is damaged"
    elif not applied and (can := sum(finding.apply is not None for finding in findings)):
        yield f"{can} of {len(findings)} can be mended: 'moxin repair --apply'"
