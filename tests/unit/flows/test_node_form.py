"""The form of a node's deployment: fields as the stage declares them, and the settings that a filled-in form means."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from flows import node_form, profiles
from stages.pipeline import PIPELINE

PROFILES = [profiles.load(name, PIPELINE) for name in profiles.names()]


def without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_none(inner) for key, inner in value.items() if inner is not None}
    return value


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_forms_take_what_a_profile_says_and_mean_it(profile: profiles.Profile) -> None:
    fields = {name: without_none(config.model_dump(mode="json")) for name, config in profile.configs.items()}
    for node in PIPELINE:
        form = node_form.schema(node, [profile])
        schema = {"type": "object", "additionalProperties": False, **form}
        jsonschema.Draft202012Validator(schema).validate({node.name: fields[node.name]})
    again = profiles.load(profile.name, PIPELINE, node_form.overrides(fields))
    assert again.configs == profile.configs


def test_what_is_no_field_is_refused() -> None:
    schema = {"type": "object", "additionalProperties": False, **node_form.schema(PIPELINE.nodes["collect"], PROFILES)}
    jsonschema.validate({"collect": {}}, schema)
    for wrong in ({"collect": {"not_a_field": 1}}, {"ingest_text": {}}):
        with pytest.raises(jsonschema.ValidationError, match=r"not_a_field|ingest_text"):
            jsonschema.validate(wrong, schema)


def test_nothing_is_preset_and_every_field_says_what_it_is_for() -> None:
    def check(field: dict[str, Any], place: str) -> None:
        assert "default" not in field, place
        assert "required" not in field, place
        # a switch that nobody touched is sent as false by Prefect's form: a choice is not
        assert field.get("type") != "boolean", place
        assert field["description"], place
        for name, inner in field.get("properties", {}).items():
            check(inner, f"{place}.{name}")

    for node in PIPELINE:
        check(node_form.schema(node, PROFILES)["properties"][node.name], node.name)


def test_a_field_shows_its_value_in_each_profile() -> None:
    fields = node_form.schema(PIPELINE.nodes["pretrain_1"], PROFILES)["properties"]["pretrain_1"]["properties"]
    assert fields["learning_rate"]["description"].endswith("[7b: 2e-06, small: 0.0006, tiny: 0.003]")
    assert fields["grad_clip"]["description"].endswith("[1.0 in every profile]")
    assert fields["shape"]["properties"]["layers"]["description"].endswith("[7b: 36, small: 12, tiny: 4]")
    assert fields["document_mask"]["enum"] == [True, False]


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({}, []),
        ({"a": {}}, []),
        ({"a": {"b": None, "c": {"d": None}}}, []),
        ({"a": {"b": 1e-5, "c": True, "d": "1e-5"}}, ["a.b=1e-05", "a.c=true", 'a.d="1e-5"']),
        ({"a": {"b": {"c": 1, "d": [1, 2]}}}, ["a.b.c=1", "a.b.d=[1, 2]"]),
        ({"a": {"b": {"x.y": 1}}}, ['a.b={"x.y": 1}']),
    ],
)
def test_a_table_is_taken_apart_and_what_is_empty_is_left_out(fields: dict[str, Any], settings: list[str]) -> None:
    assert node_form.overrides(fields) == settings


def test_what_set_says_wins_over_the_form() -> None:
    given = {"fields": {"pretrain_1": {"learning_rate": 0.1}}, "set": ["pretrain_1.learning_rate=0.2"]}
    overrides = node_form.given_overrides(given)
    assert profiles.load("tiny", PIPELINE, overrides).configs["pretrain_1"].learning_rate == 0.2
    assert node_form.given_overrides({"select": "full"}) == []


def test_a_word_in_angle_brackets_is_shown() -> None:
    fields = node_form.schema(PIPELINE.nodes["problems"], PROFILES)["properties"]["problems"]["properties"]
    assert "`package:<installed package with a folder model>`" in fields["embedding"]["description"]
