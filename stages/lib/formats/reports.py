"""`EvalReport`: what an evaluation says, in one typed document, whatever harness made it. No times, no paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.core.errors import InputError

FILE = "report.json"
VERSION = 2
TOY = "toy-"
"""Before the name of whatever this pipeline made itself in another's format."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EvaluatedModel(_Part):
    """The model that was evaluated."""

    node: str
    digest: str = Field(description="content digest of the Model artifact")
    parameters: int
    dtype: str
    trained_on: tuple[str, ...] = Field(description="benchmarks whose training splits it was trained on: in-domain")


class Harness(_Part):
    """The program that scored it."""

    name: str
    version: str


class Control(_Part):
    """The same questions without what the task is about: for images, every question with another one's image
    ('blind').
    """

    name: str
    value: float = Field(description="0 to 1")
    stderr: float | None
    gain: float = Field(description="the score minus this")
    gain_stderr: float | None = Field(description="of the mean of the questions' differences (paired)")


class Score(_Part):
    """One metric of one task."""

    suite: str
    task: str
    metric: str = Field(description="acc, acc_norm, ...")
    headline: bool = Field(description="whether this is the metric that the paper's table prints")
    value: float = Field(description="0 to 1")
    stderr: float | None
    n: int = Field(description="documents scored")
    n_total: int = Field(description="documents in the split")
    num_fewshot: int
    data_set: str
    split: str
    task_version: str
    truncated: int = Field(description="requests that were longer than the context, and lost their beginning")
    in_domain: bool
    comparable_to_paper: bool
    note: str = Field(default="", description="why it is not comparable, reasons separated by '; '")
    filter: str = Field(default="none", description="the harness's filter of the answers")
    repeats: int = Field(default=1, description="answers for each document")
    chat_template: bool = False
    generation: dict[str, Any] | None = Field(default=None, description="settings of generation; None: log-likelihoods")
    data_config: str | None = Field(default=None, description="configuration of the data set")
    data_fingerprint: str | None = Field(default=None, description="SHA-256 of the split's content")
    higher_is_better: bool = True
    table: str | None = Field(default=None, description="the paper's table that it belongs to")
    column: str | None = Field(default=None, description="column of that table")
    control: Control | None = None
    toy: bool = Field(default=False, description="made questions in the data set's format, not the data set itself")

    @property
    def name(self) -> str:
        """What a person is shown: a task of made questions never carries the benchmark's bare name."""
        return f"{TOY}{self.task}" if self.toy else self.task


class Aggregate(_Part):
    """The mean of a suite's headline metrics, as the paper's tables print it."""

    suite: str
    value: float
    stderr: float | None
    tasks: int


class Report(_Part):
    """A whole evaluation."""

    schema_version: int = VERSION
    model: EvaluatedModel
    harness: Harness
    seed: int
    results: tuple[Score, ...]
    aggregates: tuple[Aggregate, ...]


def sample_value(value: Any) -> str:
    """What JSON has no form for, in a sample: a picture's bytes as their count, times and the like as text."""
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)


def write_report(folder: Path, report: Report) -> None:
    """Write report.json."""
    (folder / FILE).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")


def parse_report(data: bytes, where: str) -> Report:
    """Read report.json's bytes. Raises InputError naming `where`."""
    try:
        return Report.model_validate_json(data)
    except ValidationError as error:
        raise InputError(f"{where} is no evaluation report of version {VERSION}: {error.errors()[0]['msg']}") from error
