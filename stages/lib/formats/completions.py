"""`Completions`: programs that a model wrote, to be run and scored by a stage of its own, apart from everything else.

| file | what |
| --- | --- |
| `completions.json` | the model, the harness, and one `CodeTask` for each task |
| `<suite>.<task>.jsonl` | one `Candidate` a line, in the data set's order |

Written by `evaluate`, which never runs a program; read by `execute_code`, which has neither the model nor a network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.core.errors import InputError
from stages.core.files import inside
from stages.lib.formats.reports import EvaluatedModel, Harness

FILE = "completions.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CodeTask(_Part):
    """One task of which programs were written: all that its row of an evaluation report says, but the score."""

    suite: str
    task: str
    k: tuple[int, ...] = Field(description="pass@k to report")
    headline: str = Field(description="the metric that the paper's table prints: pass@1, ...")
    n_total: int = Field(description="documents in the split")
    num_fewshot: int
    data_set: str
    data_config: str | None = None
    data_fingerprint: str | None = Field(default=None, description="SHA-256 of the split's content")
    split: str
    task_version: str
    truncated: int = 0
    in_domain: bool = False
    repeats: int = Field(gt=0, description="programs for each document")
    chat_template: bool = False
    generation: dict[str, Any] | None = None
    comparable_to_paper: bool = False
    note: str = ""
    toy: bool = False
    table: str | None = None
    column: str | None = None

    @property
    def file(self) -> str:
        """Its file of candidates."""
        return f"{self.suite}.{self.task}.jsonl"


class Candidate(_Part):
    """The programs of one document, and the test that each must pass when it is appended."""

    doc: int = Field(ge=0, description="position in the split")
    id: str = Field(description="the data set's own name of it, or its position")
    programs: tuple[str, ...] = Field(description="prompt and answer as one program, after the task's filter")
    test: str = Field(description="Python that raises unless the program is right")
    prompt: str = Field(default="", description="what the model was asked")
    row: dict[str, Any] = Field(default={}, description="the document as the data set has it, plain JSON")


class Completions(_Part):
    """The listing."""

    schema_version: int = 1
    model: EvaluatedModel
    harness: Harness
    seed: int
    tasks: tuple[CodeTask, ...]


def write_completions(folder: Path, listing: Completions, candidates: Iterable[Iterable[Candidate]]) -> None:
    """Write the listing, and the candidates of its tasks in their order. No tasks: a listing alone."""
    for task, rows in zip(listing.tasks, candidates, strict=True):
        with open(inside(folder, task.file), "w", encoding="utf-8") as stream:
            stream.writelines(row.model_dump_json() + "\n" for row in rows)
    (folder / FILE).write_text(listing.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_completions(folder: Path) -> Completions:
    """Read the listing. Raises InputError where there is none, or it is damaged."""
    try:
        return Completions.model_validate_json((folder / FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"{FILE} cannot be read: {str(error).splitlines()[0]}") from error


def read_candidates(folder: Path, task: CodeTask) -> Iterator[Candidate]:
    """The candidates of a task. Raises InputError naming file and line."""
    try:
        with open(inside(folder, task.file), encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    yield Candidate.model_validate_json(line)
                except ValidationError as error:
                    raise InputError(f"{task.file}, line {number}: {error.errors()[0]['msg']}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{task.file} cannot be read: {error}") from error
