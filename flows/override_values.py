"""What the text after `=` of a `--set` means: TOML's value, or JSON's list or object, or the text itself."""

from __future__ import annotations

import json
import tomllib
from typing import Any


def value_of(text: str) -> Any:
    """TOML first, because profiles are written in it. Nothing of a word is quoted by hand: what is neither is text."""
    text = text.strip()
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        pass
    if text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            pass
    return text
