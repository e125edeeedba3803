"""The fields of one node in its deployment's form: typed and described as its stage declares them, all of them empty.

What is filled in goes on top of the profile, as `--set node.field=value` does; what is empty stays as the profile says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from flows.profiles import Profile
from stages.core.stage import Stage

Schema = dict[str, Any]


def schema(node: Stage[Any], profiles: Sequence[Profile]) -> Schema:
    """JSON Schema of the form's `fields` for a node: `{node: {field: value}}`, nothing required, nothing preset. Each
    field's description ends with its value in each profile.
    """
    model = node.config_type.model_json_schema(ref_template="#/definitions/{model}")
    definitions = model.pop("$defs", {})
    values = {profile.name: profile.configs[node.name].model_dump(mode="json") for profile in profiles}
    fields = _optional(model, definitions, values) | {
        "title": node.name,
        "description": f"What differs from the profile for {node.name}",
    }
    return {"properties": {node.name: fields}, "definitions": _used(fields, definitions)}


def overrides(fields: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The settings that a form's `{node: {field: value}}` stands for, each as `node.field=value`. A table is taken
    apart: what it leaves out stays as the profile says. None: not filled in.
    """
    return [f"{name}={json.dumps(value)}" for name, value in _leaves(fields) if value is not None]


def given_overrides(parameters: Mapping[str, Any]) -> list[str]:
    """The settings of a run, by its parameters: the form's fields, then `set`, which wins."""
    return [*overrides(parameters.get("fields") or {}), *map(str, parameters.get("set") or ())]


def _leaves(table: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in table.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, Mapping) and all("." not in inner for inner in cast("Mapping[str, Any]", value)):
            rows += _leaves(cast("Mapping[str, Any]", value), name)
        else:
            rows.append((name, cast("Any", value)))
    return rows


def _optional(model: Schema, definitions: Schema, values: Mapping[str, Any]) -> Schema:
    """A model's schema with every field left to the profile. A list's items are whole: they keep what they need."""
    properties: Schema = {}
    for name, field in model.get("properties", {}).items():
        inner = {profile: cast("Schema", value).get(name) for profile, value in values.items() if value}
        described = _without_null({key: value for key, value in field.items() if key not in ("default", "title")})
        table = definitions.get(str(described.get("$ref", "")).removeprefix("#/definitions/"), {})
        if table.get("type") == "object":
            described = _optional(table, definitions, inner) | {"description": described.get("description", "")}
        else:
            described["description"] = _told(str(described.get("description", "")), inner)
            if described.get("type") == "boolean":
                del described["type"]
                described["enum"] = [True, False]  # Prefect's form sends a switch that nobody touched as false
        properties[name] = {"title": name, **described, "position": len(properties)}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _without_null(field: Schema) -> Schema:
    """An empty field means the profile's value, so that nothing else needs to be told by null."""
    kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return field | ({"anyOf": kinds} if kinds else {})
    return {key: value for key, value in field.items() if key != "anyOf"} | kinds[0]


def _told(text: str, values: Mapping[str, Any]) -> str:
    """A field's description with its value in each profile, as far as it can be shown in a line. Prefect's form reads
    it as Markdown, where a word in angle brackets would be a tag.
    """
    text = re.sub(r"[^\s'\"`]*<[^>]*>[^\s'\"`]*", lambda word: f"`{word[0]}`", text)
    shown = {profile: _short(value) for profile, value in values.items()}
    if not shown:
        return text
    if len(set(shown.values())) == 1:
        return f"{text} [{next(iter(shown.values()))} in every profile]"
    return f"{text} [{', '.join(f'{profile}: {value}' for profile, value in shown.items())}]"


def _short(value: Any) -> str:
    if isinstance(value, list | dict):
        return f"{len(cast('list[Any]', value))} {'entry' if len(cast('list[Any]', value)) == 1 else 'entries'}"
    text = "none" if value is None else json.dumps(value) if isinstance(value, bool) else str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _used(schema: Any, definitions: Schema) -> Schema:
    """The definitions that a schema refers to, with what those refer to."""
    names: list[str] = []
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            table = cast("Schema", part)
            name = str(table.get("$ref", "")).removeprefix("#/definitions/")
            if name in definitions and name not in names:
                names.append(name)
                waiting.append(definitions[name])
            waiting += table.values()
        elif isinstance(part, list):
            waiting += cast("list[Any]", part)
    return {name: definitions[name] for name in sorted(names)}
