"""An output as it is to be published: its files wherever they lie, its facets, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Prepared:
    """files: {path in the artifact: file on this disk}; license: SPDX, '' where nothing is said."""

    files: dict[str, Path]
    facets: dict[str, str | int] = field(default_factory=dict[str, "str | int"])
    meta: dict[str, Any] = field(default_factory=dict[str, Any])
    license: str = ""

    def value(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "files": {name: str(path) for name, path in self.files.items()},
            "facets": self.facets,
            "meta": self.meta,
            "license": self.license,
        }
