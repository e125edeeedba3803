"""What the commands share: the two consoles, the options, and ways to the ledger and the profile."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.terminal_text import line
from stages.core.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from flows.settings import Settings
    from stages.core.messages import StageResult

PIPE_WIDTH = 200
"""Columns where the output is no terminal: a log or a pipe has no edge to wrap at."""


class Terminal:
    """A console that is made at its first word: rich would be a third of what `moxin --help` imports.
    stderr: standard error instead of standard output.
    """

    def __init__(self, stderr: bool = False) -> None:
        self._stderr = stderr

    @cached_property
    def console(self) -> Console:
        from rich.console import Console

        width = None if self._stderr or sys.stdout.isatty() else PIPE_WIDTH
        return Console(stderr=self._stderr, highlight=False, markup=False, emoji=False, width=width)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.console, name)


out, err = Terminal(), Terminal(stderr=True)

ProfileOption = Annotated[str, typer.Option("--profile", "-p", help="values of the run: infra/profiles/<name>.toml")]
SelectOption = Annotated[
    str,
    typer.Option(
        "--select",
        "-s",
        help="'full', or nodes and stages: 'x', 'x+' (and what follows), '+x' (and what it needs), separated by commas",
    ),
]
SetOption = Annotated[list[str], typer.Option("--set", help="override: node.field=value, in TOML or JSON (repeatable)")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="run the selected nodes even if the ledger has their results")
]
LauncherOption = Annotated[
    str | None,
    typer.Option(help="who runs the stages, instead of the profile's choice: process, docker, slurm, kubernetes"),
]
BudgetOption = Annotated[
    float | None,
    typer.Option(
        help="dollars: a run does not begin above them, and begins no further node that would lead above them"
    ),
]
ApproveOption = Annotated[
    bool, typer.Option("--approve", help="run although the budget may not do; what is spent is counted")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]
ExperimentOption = Annotated[
    str, typer.Option("--experiment", "-e", metavar="NAME", help="the results of this experiment, not the profile's")
]
KeyOption = Annotated[
    str, typer.Option("--key", metavar="KEY", help="the result of this key (its first characters will do), or tag")
]
NodeArgument = Annotated[str, typer.Argument(help="name of a node")]


def say(*parts: Any) -> None:
    """A line for people."""
    out.print(line(*parts))


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


@contextmanager
def open_ledger(settings: Settings | None = None) -> Generator[Any]:
    from flows.settings import Settings
    from stages.core.ledger import Ledger
    from stages.core.store import Store

    settings = settings or Settings.load()
    os.environ.update(settings.store_environment())
    yield Ledger(Store(settings.store, interactive=True))


def load_profile(profile: str, overrides: list[str]) -> tuple[Any, Any]:
    from flows import profiles
    from stages.pipeline import PIPELINE

    values = profiles.load(profile, PIPELINE, overrides)
    print_warnings(values.warnings)
    return PIPELINE, values


def read_profile(ledger: Any, profile: str, experiment: str = "", overrides: Iterable[str] = ()) -> tuple[Any, Any]:
    """The pipeline, and the settings that a reading command goes by: a profile's, or an experiment's."""
    from flows import experiments
    from stages.pipeline import PIPELINE

    values = experiments.view(ledger, PIPELINE, profile, experiment, list(overrides))
    print_warnings(values.warnings)
    return PIPELINE, values


def print_warnings(warnings: Iterable[str]) -> None:
    for warning in warnings:
        err.print(line((f"warning: {warning}", "yellow")), soft_wrap=True)


def find_node(name: str) -> Any:
    from stages.pipeline import PIPELINE

    if name not in PIPELINE:
        PIPELINE.select(name if name != "full" else "")  # raises with the nearest name
        raise ConfigError(
            f"'{name}' is a stage, not a node: choose one of {', '.join(n.name for n in PIPELINE if n.stage == name)}"
        )
    return PIPELINE[name]


def read_result(
    ledger: Any, node: str, profile: str, experiment: str = "", overrides: Iterable[str] = (), key: str = ""
) -> StageResult:
    """The one result that `--experiment`, `--set` and `--key` speak of. Raises ConfigError where there is none."""
    from flows.experiments import results

    pipeline, values = read_profile(ledger, profile, experiment, overrides)
    return results.of_node(ledger, pipeline, values, find_node(node).name, key)


def all_overrides(set_: list[str], launcher: str | None) -> list[str]:
    return [*set_, *([f"launcher={launcher}"] if launcher else [])]


def plan_nodes(
    ledger: Any,
    profile: str,
    select: str,
    overrides: list[str],
    force: bool = False,
    deep: bool = False,
    experiment: str = "",
) -> tuple[list[Any], Any]:
    from flows.plan import make_plan

    pipeline, values = read_profile(ledger, profile, experiment, overrides)
    return make_plan(pipeline, values, ledger, select, force, deep), values


@contextmanager
def progress(quiet: bool) -> Generator[Callable[[str], None]]:
    """Says what is being done, on standard error, where that is a terminal."""
    if quiet or not err.is_terminal:
        yield lambda text: None
        return
    with err.status("looking") as status:
        yield lambda text: status.update(line(text))


def print_problems(findings: list[Any], what: str) -> None:
    lines = list(dict.fromkeys(finding.line for finding in findings))
    if lines:
        err.print(line((f"{len(lines)} problem{'s' * (len(lines) > 1)} {what}:", "red")))
    for text in lines:
        err.print(line(f"  {text}"), soft_wrap=True)
