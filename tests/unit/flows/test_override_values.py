"""The text of a `--set` as a value."""

from __future__ import annotations

from typing import Any

import pytest

from flows.override_values import value_of


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("800_000", 800_000),
        ("true", True),
        ("cuda", "cuda"),
        ('"7"', "7"),
        ("", ""),
        (" [0.6, 0.2] ", [0.6, 0.2]),
        ('[{ base = "table_2", limit = 8 }, "table_3"]', [{"base": "table_2", "limit": 8}, "table_3"]),
        ('[{"base": "table_2", "limit": 8}, "table_3"]', [{"base": "table_2", "limit": 8}, "table_3"]),
        ('{"gsm8k": {"limit": null}}', {"gsm8k": {"limit": None}}),
        ("[a, b", "[a, b"),
        ("null", "null"),
    ],
)
def test_a_value_is_toml_or_json_or_text(text: str, value: Any) -> None:
    assert value_of(text) == value
