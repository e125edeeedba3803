"""An output as it is to be published: its files wherever they lie, its facets, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROVENANCE = ".moxin-artifact.json"
"""What `moxin export` writes beside the files of an artifact, and `moxin adopt` reads. Hidden: a loader of data sets
that takes a whole folder does not take it for data.
"""


@dataclass(frozen=True)
class Prepared:
    """files: {path in the artifact: file on this disk}; license: SPDX, '' where nothing is said; sha256: {path: digest}
    of the files whose bytes were read for it already.
    """

    files: dict[str, Path]
    facets: dict[str, str | int] = field(default_factory=dict[str, "str | int"])
    meta: dict[str, Any] = field(default_factory=dict[str, Any])
    license: str = ""
    sha256: dict[str, str] = field(default_factory=dict[str, str])

    def value(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "files": {name: str(path) for name, path in self.files.items()},
            "facets": self.facets,
            "meta": self.meta,
            "license": self.license,
            "sha256": self.sha256,
        }
