"""The Model Openness Framework: 17 components, which of them each class asks for, and what counts as open.

A model's class is computed from its `mof.yml` as the framework's own tool computes it (`infra/openness.toml` names the
revision): a class is reached when every component that it and the classes below it ask for is there under an open
licence. A research paper may stand in for the technical report.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field

from flows.data_files import DATA, load_toml
from stages.core.errors import InputError

FILE = "mof.yml"
FACTS = DATA / "infra" / "openness.toml"
CLASSES = {
    0: "unclassified",
    3: "Class III: open model",
    2: "Class II: open tooling",
    1: "Class I: open science",
}
"""The classes by number, the highest last; 0: not even the lowest one."""
REPORT, PAPER = "Technical report", "Research paper"
UNLICENSED = "unlicensed"
"""What mof.yml says of a component that is there without a licence."""


class Component(BaseModel):
    """One component of the framework."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["code", "data", "document"]
    level: int = Field(alias="class", ge=1, le=3, description="the class from which on it is asked for")
    required: bool
    description: str


class _Paper(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str
    license: str


class _Licenses(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    open: str
    data: str


class Facts(BaseModel):
    """infra/openness.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repository: str
    paper: _Paper
    framework: dict[str, str]
    component: tuple[Component, ...] = Field(min_length=17, max_length=17)
    licenses: _Licenses

    @property
    def open(self) -> frozenset[str]:
        """Identifiers that count as open, in lower case: SPDX's are the same in any."""
        return frozenset(f"{self.licenses.open} {self.licenses.data}".lower().split())


@functools.cache
def facts() -> Facts:
    """The framework's facts. Raises ConfigError."""
    return load_toml(Facts, FACTS)


@dataclass(frozen=True)
class Openness:
    """A model's class, and what stands between it and the next one.

    lacking: {class: {component: why it does not count}}, of required components, each under the class that asks for it.
    """

    level: int
    lacking: Mapping[int, Mapping[str, str]]

    @property
    def title(self) -> str:
        """The class in words."""
        return CLASSES[self.level]

    @property
    def next_level(self) -> int | None:
        """The class above; None: there is none."""
        return {0: 3, 3: 2, 2: 1, 1: None}[self.level]

    @property
    def missing(self) -> Mapping[str, str]:
        """What the next class asks for and does not have, and why it does not count."""
        return self.lacking.get(self.next_level, {}) if self.next_level else {}


def classify(document: Mapping[str, Any]) -> Openness:
    """The class of a model from its mof.yml. Raises InputError for what is none."""
    try:
        release: dict[str, Any] = document["release"]
        licenses: dict[str, Any] = release.get("license") or {}
        present: dict[str, dict[str, Any]] = {row["name"]: row for row in release["components"]}
        shared: dict[str, str] = {kind: row.get("name") or "" if row else "" for kind, row in licenses.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{FILE} is not of the Model Openness Framework: {error!r} is missing") from error
    why = {c.name: _why_not(c, present.get(c.name), shared) for c in facts().component if c.required}
    if not why[PAPER]:
        why[REPORT] = ""
    lacking = {
        level: {c.name: why[c.name] for c in facts().component if c.required and c.level == level and why[c.name]}
        for level in (3, 2, 1)
    }
    reached = 0
    for level in (3, 2, 1):
        if lacking[level]:
            break
        reached = level
    return Openness(reached, lacking)


def _why_not(component: Component, row: Mapping[str, Any] | None, shared: Mapping[str, str]) -> str:
    """Why a component does not count; '' when it does."""
    if row is None:
        return "not there"
    license = row.get("license", shared.get(component.kind) or shared.get("distribution") or UNLICENSED)
    if not license or license == UNLICENSED:
        return "there, under no licence"
    return "" if is_open(license) else f"there, under {license}, which is no open licence"


@functools.cache
def _licensing() -> Any:
    """SPDX's licences, made once: it takes 0.06 CPU seconds, and a model has 17 components."""
    from license_expression import get_spdx_licensing

    return get_spdx_licensing()


def is_open(expression: str) -> bool:
    """Whether an SPDX expression is open: of alternatives one has to be, of what applies together all.

    What is no SPDX expression is not open.
    """
    from license_expression import ExpressionError

    try:
        tree: Any = _licensing().parse(expression, validate=True, simple=False)
    except (ExpressionError, ValueError):
        return expression.lower() in facts().open  # newer than the library's list
    return tree is not None and _open(tree)


def _open(tree: Any) -> bool:
    """Of a parsed expression: `license X` and `X WITH exception` by the licence, AND by all, OR by any."""
    parts = getattr(tree, "args", ())
    if type(tree).__name__ == "OR":
        return any(map(_open, parts))
    if type(tree).__name__ == "AND":
        return all(map(_open, parts))
    symbol = getattr(tree, "license_symbol", tree)
    return str(symbol.key).lower() in facts().open


def spdx(name: str) -> str:
    """A licence as the hub or a data set spells it, as SPDX spells it; '' for what is none."""
    from license_expression import ExpressionError

    spelled = {"odc-by": "ODC-By-1.0", "odbl": "ODbL-1.0", "pddl": "PDDL-1.0", "gpl-3.0": "GPL-3.0-only"}
    try:
        tree: Any = _licensing().parse(spelled.get(name.lower(), name), validate=True)
    except (ExpressionError, ValueError):
        return ""
    return "" if tree is None else str(tree)


def read(path: Path) -> dict[str, Any]:
    """A mof.yml. Raises InputError."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is no {FILE}")
    return cast("dict[str, Any]", value)
