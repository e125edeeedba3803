"""Copy what one stage's image needs: `stages.core`, and the sources that the stage's digest covers. Nothing else.

python -m stages.core.bundle dedup /app
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from stages.core.files import ROOT
from stages.core.keys import canonical_json, sha256, source_files

_NOT_SHIPPED = {"bundle.py", "testing.py"}


def core_files() -> list[Path]:
    """The modules of `stages.core` that an image carries, in path order."""
    return sorted(p for p in (ROOT / "stages" / "core").glob("*.py") if p.name not in _NOT_SHIPPED)


def contract_digest() -> str:
    """Digest of `core_files`: what the two sides of the container's boundary must agree on."""
    return sha256(canonical_json([[p.name, sha256(p.read_bytes())] for p in core_files()]))


def stage_files(stage: str) -> list[Path]:
    """Every file of a stage's image, in path order: Python sources, and the data files beside them."""
    files = {ROOT / "stages" / "__init__.py", *core_files(), *source_files(stage)}
    for folder in {path.parent for path in files} - {ROOT / "stages", ROOT / "stages" / "core"}:
        files |= {p for p in folder.iterdir() if p.is_file() and p.suffix not in (".py", ".md", ".pyc")}
    return sorted(files)


def bundle(stage: str, target: Path) -> None:
    """Copy `stage_files` under `target`, with the paths that they have here."""
    for path in stage_files(stage):
        copy = target / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


if __name__ == "__main__":
    bundle(sys.argv[1], Path(sys.argv[2]))
