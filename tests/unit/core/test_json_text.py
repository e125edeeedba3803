"""JSON of others: a value or a ValueError, however deep it is nested."""

from __future__ import annotations

import pytest

from stages.core.json_text import parsed_json


@pytest.mark.parametrize("text", ["", "{", "[" * 3000, '{"a":' * 3000, "[" * 3000 + "]" * 3000, b"\xff", "9" * 5000])
def test_what_is_no_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parsed_json(text)


def test_text_and_bytes_are_read() -> None:
    assert parsed_json('{"a": [1, "é"]}') == parsed_json('{"a": [1, "é"]}'.encode()) == {"a": [1, "é"]}
