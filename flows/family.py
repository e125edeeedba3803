"""The family of models (infra/family.toml; paper, Table 9): names, descriptions, licences, and which nodes evaluate
them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, cast

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from flows import paper
from flows.data_files import DATA, load_toml
from stages.core.artifacts import EvalReport
from stages.core.errors import ConfigError
from stages.core.graph import Pipeline

FILE = DATA / "infra" / "family.toml"


def _spdx(expression: str) -> str:
    try:
        return canonicalize_license_expression(expression)
    except InvalidLicenseExpression as error:
        raise ValueError(f"not an SPDX licence expression: {error}") from error


class TableRow(BaseModel):
    """A model's row in one of the paper's tables."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row: str | None = Field(default=None, description="the paper's row; None: the paper's table has no such model")
    nodes: tuple[str, ...] = Field(default=(), description="evaluations whose scores fill the row")


class FamilyModel(BaseModel):
    """One model of the family."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node: str = Field(description="the node that makes it")
    name: str = Field(min_length=1, description="what the paper calls it")
    released_as: str | None = Field(default=None, description="its name in the releases, where Table 9 prints one")
    table_9: bool = Field(default=True, description="whether Table 9 lists it")
    description: str = Field(min_length=1, pattern=r"^[^\n]+$", description="one line")
    license: Annotated[str, AfterValidator(_spdx)] = Field(description="of its weights: an SPDX expression")
    base: str | None = Field(default=None, description="node of the model that it was trained from; None: from scratch")
    tables: Mapping[str, TableRow] = Field(default={}, description="'table_2' ..: its row there")

    @property
    def release(self) -> str:
        """The name of its release: Table 9's, or the paper's name of the model where Table 9 prints none."""
        return self.released_as or self.name

    @property
    def title(self) -> str:
        """What a column or row of this run calls it: without the size, which a profile chooses."""
        return self.name.removeprefix("Moxin-7B-")

    @property
    def rows(self) -> dict[str, str]:
        """The paper's row of this model, by table."""
        return {table: entry.row for table, entry in self.tables.items() if entry.row is not None}

    @property
    def evaluations(self) -> tuple[str, ...]:
        """The nodes that evaluate it, in the order of the tables."""
        return tuple(dict.fromkeys(node for entry in self.tables.values() for node in entry.nodes))


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    model: dict[str, FamilyModel] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _name_nodes(cls, tables: Any) -> Any:
        """A model's node is the name of its table."""
        models = tables.get("model")
        if not isinstance(models, dict):
            return tables
        return tables | {
            "model": {
                node: {"node": node} | cast("dict[str, Any]", values) if isinstance(values, dict) else values
                for node, values in cast("dict[str, Any]", models).items()
            }
        }


class Family:
    """The models by node, in the file's order."""

    def __init__(self, models: Mapping[str, FamilyModel]) -> None:
        self.models = dict(models)

    def __iter__(self) -> Iterator[FamilyModel]:
        return iter(self.models.values())

    def __getitem__(self, node: str) -> FamilyModel:
        """The model that a node makes. Raises ConfigError for one that is not in the family."""
        if node not in self.models:
            raise ConfigError(f"{FILE.name} has no model of node '{node}'; it has: {', '.join(self.models)}")
        return self.models[node]

    def released(self) -> list[FamilyModel]:
        """Table 9: the models that are released."""
        return [model for model in self if model.table_9]

    def of_table(self, table: str) -> list[FamilyModel]:
        """The models that have a row in a table ('table_2' ..)."""
        return [model for model in self if table in model.tables]


def load(pipeline: Pipeline | None = None, file: Path = FILE) -> Family:
    """Read the family, checked against a pipeline (default: the paper's) and the paper's tables.

    Raises ConfigError with one line: a node that the pipeline has not, a row that the paper's table has not, an
    evaluation of another model.
    """
    if pipeline is None:
        from stages.pipeline import PIPELINE as pipeline
    models = load_toml(_File, file).model
    for model in models.values():
        try:
            _check(model, models, pipeline)
        except ValueError as error:
            raise ConfigError(f"{file.name}: model.{model.node}: {error}") from error
    return Family(models)


def _check(model: FamilyModel, models: Mapping[str, FamilyModel], pipeline: Pipeline) -> None:
    """Raises ValueError saying which key of a model does not fit the pipeline or the paper."""
    if model.node not in pipeline:
        raise ValueError(f"the pipeline has no such node{_nearest(model.node, [node.name for node in pipeline])}")
    if model.base is not None and model.base not in models:
        raise ValueError(f"base = '{model.base}' is no model of this file{_nearest(model.base, models)}")
    if model.base is not None and model.base not in pipeline.ancestors(model.node):
        raise ValueError(f"base = '{model.base}': the pipeline does not make {model.node} from it")
    for table, entry in model.tables.items():
        if table not in paper.tables():
            raise ValueError(f"tables.{table}: the paper has no such table{_nearest(table, paper.tables())}")
        rows = [row.model for row in paper.tables()[table].rows]
        if entry.row is not None and entry.row not in rows:
            raise ValueError(
                f"tables.{table}.row = '{entry.row}': the paper's table has no such row{_nearest(entry.row, rows)}"
            )
        for node in entry.nodes:
            _check_evaluation(node, f"tables.{table}.nodes: '{node}'", model, models, pipeline)


def _check_evaluation(
    node: str, key: str, model: FamilyModel, models: Mapping[str, FamilyModel], pipeline: Pipeline
) -> None:
    """Raises ValueError unless a node evaluates this very model."""
    evaluations = [
        n.name for n in pipeline if any(p.direction == "output" and p.type is EvalReport for p in n.ports.values())
    ]
    if node not in evaluations:
        raise ValueError(f"{key} is no node that makes an evaluation report{_nearest(node, evaluations)}")
    behind = pipeline.ancestors(node)
    later = [other for other in models if other in behind and model.node in pipeline.ancestors(other)]
    if model.node not in behind or later:
        raise ValueError(f"{key} does not evaluate this model{f', but {later[-1]}' if later else ''}")


def _nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message: the name that may have been meant, or all that there are."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; there are: {', '.join(names)}"
