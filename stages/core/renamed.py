"""Former names of configuration fields: accepted for one version, with a warning that names the new one.

    global_batch_size: Annotated[int, Renamed("batch_size", until="0.3")] = Field(128, gt=0, description="...")

A field that went into a table, and what a table had, is `Moved` there:

    parallel: Annotated[Sizes, Moved("tensor_parallel", "tensor", until="0.3")] = Field(Sizes(), description="...")

Whoever reads values from a person (`flows/profiles.py`) calls `current_names` before validation. Keys and requests
know the present names alone.
"""

from __future__ import annotations

import types
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union, cast, get_args, get_origin

from pydantic import BaseModel

from stages.core.errors import ConfigError


@dataclass(frozen=True)
class Renamed:
    """Metadata of a field: a name that it had before. Several may stand in one `Annotated`."""

    name: str
    until: str
    """The version of this package that refuses the old name: the line is to be removed with it."""


@dataclass(frozen=True)
class Moved:
    """Metadata of a field that is a table: where a setting within it was before, from the model that has the field."""

    path: str
    """`tensor_parallel`, or within one table: `colossalai.pipeline`."""
    to: str
    """The setting within the table."""
    until: str
    values: Mapping[Any, Any] | None = None
    """What its values mean now; any other says nothing any more. None: they mean what they did."""
    advice: str = ""
    """What to do instead of calling it by the new name."""


@dataclass(frozen=True)
class OldName:
    """A value that was given under its field's former name."""

    path: str
    """Where it was given, with dots: `context_phases.0.max_response`."""
    field: str
    """The field's name."""
    until: str
    advice: str = ""

    def warning(self, place: str) -> str:
        """One line for people. place: what the path is relative to, for example `tiny.toml: stage.sft.`."""
        advice = self.advice or f"is called {self.field} now: change it"
        return f"{place}{self.path} {advice}; version {self.until} refuses the old name"


def former_names(model: type[BaseModel]) -> dict[str, tuple[str, Renamed]]:
    """`{former name: (field, its metadata)}` of a model's own fields."""
    return {
        entry.name: (field, entry)
        for field, info in model.model_fields.items()
        for entry in info.metadata
        if isinstance(entry, Renamed)
    }


def moved_settings(model: type[BaseModel]) -> list[tuple[str, Moved]]:
    """Each field of a model that holds what was elsewhere, with what it was."""
    return [
        (field, entry)
        for field, info in model.model_fields.items()
        for entry in info.metadata
        if isinstance(entry, Moved)
    ]


def current_names(
    model: type[BaseModel], values: Mapping[str, Any], path: str = ""
) -> tuple[dict[str, Any], list[OldName]]:
    """The values under their fields' present names, inner tables and lists of tables too, and the old names in them.

    Unknown keys stay: validation refuses them. Raises `ConfigError` when a field is given under two of its names.
    """
    former = former_names(model)
    renamed: dict[str, Any] = {}
    old: list[OldName] = []
    values = _moved(model, values, path, old)
    for key, value in values.items():
        name, here = key, f"{path}{key}"
        if key in former:
            name, entry = former[key]
            old.append(OldName(here, name, entry.until))
        if name in renamed:
            raise ConfigError(f"{path}{name}: given twice, under its old name too: keep '{name}' alone")
        info = model.model_fields.get(name)
        renamed[name] = value if info is None else _inner(info.annotation, value, here, old)
    return renamed, old


def _moved(model: type[BaseModel], values: Mapping[str, Any], path: str, old: list[OldName]) -> Mapping[str, Any]:
    """The values with each setting where it is now; tables that nothing is left of are gone. Adds to `old`."""
    for field, entry in moved_settings(model):
        outer, dot, name = entry.path.rpartition(".")
        around = values.get(outer) if dot else values
        if not isinstance(around, Mapping) or name not in around:
            continue
        table = cast("Mapping[str, Any]", around)
        old.append(OldName(f"{path}{entry.path}", f"{field}.{entry.to}", entry.until, entry.advice))
        value, left = table[name], {key: item for key, item in table.items() if key != name}
        if dot:
            values = {key: item for key, item in values.items() if key != outer} | ({outer: left} if left else {})
        else:
            values = left
        if entry.values is not None:
            if value not in entry.values:
                continue
            value = entry.values[value]
        given = values.get(field, {})
        if not isinstance(given, Mapping):  # validation refuses it
            continue
        into = cast("Mapping[str, Any]", given)
        if entry.to in into:
            raise ConfigError(f"{path}{field}.{entry.to}: given twice, under its old name too: keep the new one alone")
        values = {**values, field: {**into, entry.to: value}}
    return values


def _inner(annotation: Any, value: Any, path: str, old: list[OldName]) -> Any:
    """A field's value, as `current_names` says, for whatever models its annotation speaks of; adds to `old`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType, Annotated):
        for member in args:
            value = _inner(member, value, path, old)
    elif isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        table = cast("Mapping[Any, Any]", value)
        return {key: _inner(args[1], item, f"{path}.{key}", old) for key, item in table.items()}
    elif isinstance(origin, type) and issubclass(origin, Collection) and isinstance(value, list):
        items = cast("list[Any]", value)
        for member in args:
            items = [_inner(member, item, f"{path}.{index}", old) for index, item in enumerate(items)]
        return items
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel) and isinstance(value, Mapping):
        current, inner = current_names(annotation, cast("Mapping[str, Any]", value), f"{path}.")
        old.extend(inner)
        return current
    return value
