"""Suites of tasks as data: one TOML file for each table of the paper, and a user's own in the same form. Light.

A configuration names shipped suites (`"table_2"`), files of a user (`"my_suite.toml"`), or a suite with changes
(`{ base = "table_3", limit = 60, tasks = { arc_challenge = { num_fewshot = 5 } } }`). What a stage gets is the content.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stages.core.errors import ConfigError
from stages.core.shrinking import Rehearsal, Shrinks

FOLDER = Path(__file__).parent / "suites"

HarnessName = Literal["lm-evaluation-harness", "olmes", "opencompass", "qwen25-math", "lmms-eval", "moxin-visual"]
HARNESS: HarnessName = "lm-evaluation-harness"
"""Whose tasks a suite's are where it does not say."""


class TaskEntry(BaseModel):
    """One task of a suite: how it is asked, how it is scored, and which column of the paper's table it fills."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = Field(min_length=1, description="its name in the harness")
    column: str | None = Field(default=None, description="column of the paper's table")
    metric: str | None = Field(default=None, description="the metric that the table prints; unset: the harness's first")
    filter: str | None = Field(default=None, description="the filter of that metric; unset: the harness's first")
    num_fewshot: int = Field(default=0, ge=0, description="worked examples before the question")
    version: str | None = Field(default=None, description="the task's version in the harness; unset: not known")
    chat_template: bool = Field(default=False, description="ask through the model's chat template")
    system: str | None = Field(default=None, description="the system message, with a chat template")
    repeats: Annotated[int, Shrinks(wiring=2, shape=2)] = Field(
        default=1, gt=0, description="answers for each document"
    )
    k: tuple[int, ...] = Field(default=(), description="pass@k to report, of the repeats")
    temperature: float | None = Field(default=None, ge=0, description="unset: as the harness's task says; 0: greedy")
    top_p: float | None = Field(default=None, gt=0, le=1, description="unset: as the harness's task says")
    max_new_tokens: Annotated[int | None, Shrinks(wiring=16, shape=64, unset=False)] = Field(
        default=None, gt=0, description="unset: as the harness's task says"
    )
    execute: bool = Field(default=False, description="answers are programs, which another stage runs and scores")
    limit: Annotated[int | None, Shrinks(wiring=2, shape=4)] = Field(
        default=None, gt=0, description="documents to score at most, first ones; unset: all"
    )
    fingerprint: str | None = Field(
        default=None, description="SHA-256 of the split that the table was scored on; unset: not known"
    )

    @model_validator(mode="after")
    def _goes_together(self) -> TaskEntry:
        if self.k and max(self.k) > self.repeats:
            raise ValueError(f"pass@{max(self.k)} needs {max(self.k)} answers, and repeats is {self.repeats}")
        if self.system is not None and not self.chat_template:
            raise ValueError("system is given with a chat template alone: set chat_template = true, or leave it out")
        return self

    def rehearsed(self, values: dict[str, Any], rehearsal: Rehearsal) -> dict[str, Any]:
        """As many answers are written as are looked at together: each pass@k stays, of fewer documents."""
        return values | {"repeats": max(values["repeats"], *self.k)} if self.k else values


class Suite(BaseModel):
    """A named list of tasks for one harness."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9_.-]+$", description="what reports call it")
    title: str = Field(default="", description="what it is, for people")
    table: str | None = Field(default=None, description="the paper's table that it repeats (infra/paper_tables.json)")
    harness: HarnessName = Field(default=HARNESS, description="whose tasks these are")
    paper_harness: HarnessName | None = Field(
        default=None, description="the harness that scored the paper's table, where it is another"
    )
    harness_version: str | None = Field(default=None, description="the version whose tasks these are; unset: not known")
    source: str = Field(default="", description="where these settings come from")
    tasks: tuple[TaskEntry, ...] = Field(min_length=1, description="in the order of the table's columns")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        if isinstance(given, str):
            return load(given).model_dump()
        if isinstance(given, Mapping) and "base" in given:
            return changed(given)
        return given


def shipped() -> list[str]:
    """Names of the suites that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Suite:
    """A shipped suite by its name, or a file that ends in .toml. Raises ConfigError."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        if name.endswith(".toml"):
            raise ConfigError(f"suite file {name} is not there")
        close = difflib.get_close_matches(name, shipped(), n=1)
        hint = f"; did you mean '{close[0]}'?" if close else f"; there are {', '.join(shipped())}"
        raise ConfigError(f"there is no suite '{name}'{hint}")
    try:
        return Suite.model_validate({"name": path.stem} | tomllib.loads(path.read_text(encoding="utf-8")))
    except (ValidationError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        said = error.errors()[0] if isinstance(error, ValidationError) else None
        what = f"{'.'.join(map(str, said['loc']))}: {said['msg']}" if said else str(error)
        raise ConfigError(f"suite file {path.name}: {what}") from error


def changed(given: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `base` with the changes laid over it: `limit` for every task, and fields of single tasks.

    A name under `tasks` that the base does not have is an error, so that a change cannot be lost. `only` keeps those
    tasks alone.
    """
    base = load(str(given["base"]))
    extra = sorted(set(given) - {"base", "limit", "tasks", "only", "name"})
    if extra:
        raise ValueError(f"a changed suite has base, limit, tasks, only and name, not {', '.join(extra)}")
    changes: Mapping[str, Any] = given.get("tasks") or {}
    names = [entry.task for entry in base.tasks]
    only = given.get("only")
    if missing := sorted((set(changes) | set(only or ())) - set(names)):
        raise ValueError(f"suite {base.name} has no task {', '.join(missing)}; it has {', '.join(names)}")
    tasks = []
    for entry in base.tasks:
        if only is None or entry.task in only:
            limit = {"limit": given["limit"]} if "limit" in given else {}
            tasks.append(entry.model_dump() | limit | dict(changes.get(entry.task, {})))
    return base.model_dump() | {"tasks": tasks} | ({"name": given["name"]} if "name" in given else {})
