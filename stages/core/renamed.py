"""Former names of configuration fields: accepted for one version, with a warning that names the new one.

    global_batch_size: Annotated[int, Renamed("batch_size", until="0.3")] = Field(128, gt=0, description="...")

Whoever reads values from a person (`flows/profiles.py`) calls `current_names` before validation. Keys and requests
know the present names alone.
"""

from __future__ import annotations

import types
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from stages.core.errors import ConfigError


@dataclass(frozen=True)
class Renamed:
    """Metadata of a field: a name that it had before. Several may stand in one `Annotated`."""

    name: str
    until: str
    """The version of this package that refuses the old name: the line is to be removed with it."""


@dataclass(frozen=True)
class OldName:
    """A value that was given under its field's former name."""

    path: str
    """Where it was given, with dots: `context_phases.0.max_response`."""
    field: str
    """The field's name."""
    until: str

    def warning(self, place: str) -> str:
        """One line for people. place: what the path is relative to, for example `tiny.toml: stage.sft.`."""
        return f"{place}{self.path} is called {self.field} now: change it; version {self.until} refuses the old name"


def former_names(model: type[BaseModel]) -> dict[str, tuple[str, Renamed]]:
    """`{former name: (field, its metadata)}` of a model's own fields."""
    return {
        entry.name: (field, entry)
        for field, info in model.model_fields.items()
        for entry in info.metadata
        if isinstance(entry, Renamed)
    }


def current_names(
    model: type[BaseModel], values: Mapping[str, Any], path: str = ""
) -> tuple[dict[str, Any], list[OldName]]:
    """The values under their fields' present names, inner tables and lists of tables too, and the old names in them.

    Unknown keys stay: validation refuses them. Raises `ConfigError` when a field is given under two of its names.
    """
    former = former_names(model)
    renamed: dict[str, Any] = {}
    old: list[OldName] = []
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


def _inner(annotation: Any, value: Any, path: str, old: list[OldName]) -> Any:
    """A field's value, as `current_names` says, for whatever models its annotation speaks of; adds to `old`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType, Annotated):
        for member in args:
            value = _inner(member, value, path, old)
    elif isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        value = {key: _inner(args[1], item, f"{path}.{key}", old) for key, item in value.items()}
    elif isinstance(origin, type) and issubclass(origin, Collection) and isinstance(value, list):
        for member in args:
            value = [_inner(member, item, f"{path}.{index}", old) for index, item in enumerate(value)]
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel) and isinstance(value, Mapping):
        value, inner = current_names(annotation, value, f"{path}.")
        old.extend(inner)
    return value
