"""Groups and tags as trees, on an index as the harness keeps it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from stages.core.errors import ConfigError
from stages.lib.evaluation.task_tree import grow


def entry(kind: str, tags: tuple[str, ...] = (), **config: Any) -> Any:
    return SimpleNamespace(kind=SimpleNamespace(name=kind), cfg=config or None, tags=set(tags))


INDEX = {
    "one": entry("TASK", dataset_path="a/one", num_fewshot=1),
    "two": entry("TASK", dataset_path="a/two"),
    "tagged": entry("TAG", ("two", "one")),
    "group": entry("GROUP", group="group", task=["one", {"task": "two", "num_fewshot": 7}], num_fewshot=3),
    "outer": entry("GROUP", group="outer", task=["group", "two", {"group": "group", "repeats": 2}], num_fewshot=5),
    "nameless": entry("GROUP", group="nameless", task=[{"num_fewshot": 1}]),
    "lost": entry("GROUP", group="lost", task=["three"]),
}


def test_a_member_has_what_its_surroundings_say_and_beside_its_name_what_wins() -> None:
    leaves = {leaf.name: leaf.settings["num_fewshot"] for leaf in grow("group", INDEX).leaves()}
    assert leaves == {"one": 3, "two": 7}
    assert {leaf.name: leaf.settings["num_fewshot"] for leaf in grow("outer", INDEX).leaves()} == {"one": 5, "two": 7}
    assert next(grow("one", INDEX).leaves()).settings == {"dataset_path": "a/one", "num_fewshot": 1}


def test_a_group_keeps_its_shape_and_gives_each_task_once() -> None:
    tree = grow("outer", INDEX)
    assert [member.kind for member in tree.members] == ["group", "task", "group"]
    assert [leaf.name for leaf in tree.leaves()] == ["one", "two"]
    assert [member.name for member in grow("tagged", INDEX).members] == ["one", "two"]


def test_members_without_a_name_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"group 'nameless' .* has a member without a name: add its tasks"):
        grow("nameless", INDEX)
    with pytest.raises(ConfigError, match=r"task 'three' is defined inside a group .*: it cannot be named alone"):
        grow("lost", INDEX)
