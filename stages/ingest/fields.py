"""Fields of a JSON or Parquet row by dotted path: what people's data sets nest, and what they hold in lists.

value_at({"meta": {"redpajama_set_name": "RedPajamaC4"}}, "meta.redpajama_set_name")     # SlimPajama's subset
label({"max_stars_repo_licenses": ["MIT", "Apache-2.0"]}["max_stars_repo_licenses"])     # the Stack's licences: "MIT
AND Apache-2.0"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def value_at(row: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """The value at a path, or the default. A key that holds dots itself comes before the keys that they separate."""
    if path in row or "." not in path:
        return row.get(path, default)
    head, _, rest = path.partition(".")
    inner = row.get(head)
    return value_at(inner, rest, default) if isinstance(inner, Mapping) else default


def columns(paths: list[str], present: set[str]) -> list[str]:
    """The Parquet columns to read for these paths, out of the top-level names that are there: a struct's field is read
    alone.
    """
    return [path for path in dict.fromkeys(paths) if path in present or path.partition(".")[0] in present]


def label(value: Any) -> str:
    """An address, licence or name as text: a list's entries joined by ' AND '. What UTF-8 cannot hold becomes '?': the
    document is usable.
    """
    if isinstance(value, list | tuple):
        return " AND ".join(dict.fromkeys(filter(None, map(label, value))))
    return str(value or "").encode("utf-8", "replace").decode()
