"""A task of lm-evaluation-harness, or a group or tag with all that is below it, as the harness's own index has them.

Settings that a group lays over its members are merged in the harness's order: a group's own, then what its surroundings
say, then what stands beside the member's name. Light: nothing of the harness is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.core.errors import ConfigError

GROUP_FIELDS = frozenset({"group", "group_alias", "task", "aggregate_metric_list", "metadata", "tag"})
"""Of a group's definition, what is the group's own and no setting of its members."""


@dataclass(frozen=True)
class Branch:
    """One task (kind "task"), or a "group" or "tag" with its members. config: its definition, functions as text."""

    name: str
    kind: str
    config: Mapping[str, Any]
    changes: Mapping[str, Any] = field(default_factory=dict)
    members: tuple[Branch, ...] = ()

    def leaves(self) -> Iterator[Branch]:
        """Its tasks, each once, in the harness's order."""
        if self.kind == "task":
            yield self
            return
        seen = {}
        for member in self.members:
            seen |= {leaf.name: leaf for leaf in member.leaves() if leaf.name not in seen}
        yield from seen.values()

    @property
    def settings(self) -> dict[str, Any]:
        """A task's definition with the changes of the groups around it."""
        return {**self.config, **self.changes}


def grow(name: str, entries: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> Branch:
    """What a name stands for. entries: the harness's index. Raises ConfigError for a member that has no name."""
    changes = changes or {}
    if name not in entries:
        raise ConfigError(f"task '{name}' is defined inside a group of lm-evaluation-harness: it cannot be named alone")
    entry = entries[name]
    config = entry.cfg or {}
    if entry.kind.name == "TAG":
        return Branch(name, "tag", {}, {}, tuple(_listed(name, sorted(entry.tags), changes, entries)))
    if entry.kind.name == "GROUP":
        inner = {**_settings(config), **changes}
        return Branch(name, "group", config, {}, tuple(_listed(name, config.get("task"), inner, entries)))
    return Branch(name, "task", config, changes)


def _listed(group: str, items: Any, changes: Mapping[str, Any], entries: Mapping[str, Any]) -> Iterator[Branch]:
    """The members of a group's list: names, or tables that change settings or list further ones."""
    for item in items if isinstance(items, list) else [items]:
        inner = item if isinstance(item, Mapping) else {"task": item}
        merged = {**changes, **_settings(inner)}
        name = inner.get("group") if inner.get("group") in entries else inner.get("task")
        if isinstance(name, list):
            yield from _listed(group, name, merged, entries)
        elif isinstance(name, str):
            yield grow(name, entries, merged)
        else:
            raise ConfigError(f"group '{group}' of lm-evaluation-harness has a member without a name: add its tasks")


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in GROUP_FIELDS}
