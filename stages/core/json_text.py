"""JSON that others wrote. Light to import."""

from __future__ import annotations

import json
from typing import Any


def parsed_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for whatever is none, also where lists or objects are nested deeper
    than the interpreter reads (about 1,000 levels), for which `json` raises RecursionError.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("lists or objects are nested too deep") from error
