"""Untyped: all of it counts as Any."""

from typing import Any

def __getattr__(name: str) -> Any: ...
