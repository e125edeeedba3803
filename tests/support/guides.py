"""Run the guides of `docs/how_to`: each in a copy of the repository, block by block, as a reader would.

- ` ```sh `: commands, by bash; one that fails ends the guide.
- ` ```python title="stages/x/spec.py" ` (or toml, markdown, ...): the whole of that file.
- ` ```diff title="stages/pipeline.py" `: lines to add (`+`) or remove (`-`) at the one place where the other lines
stand.
- Any other block (text, console, mermaid) is to be read only.
- `<!-- needs: ... -->` names what a reader must have: `services`, `docker`, `slurm`.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT

FOLDER = ROOT / "docs" / "how_to"
_BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NEEDS = re.compile(r"<!-- needs: ([\w ,]+) -->")
_COPIED = ("benchmarks", "containers", "docs", "flows", "infra", "stages", "tests")


@dataclass(frozen=True)
class Block:
    """A fenced block of a guide."""

    language: str
    title: str
    text: str
    line: int


def pages() -> list[str]:
    """Names of the guides."""
    return sorted(path.name for path in FOLDER.glob("*.md"))


def needs(page: str) -> set[str]:
    """What a guide says that its reader must have."""
    named = _NEEDS.search((FOLDER / page).read_text(encoding="utf-8"))
    return {word.strip() for word in named[1].split(",")} if named else set()


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a guide, in order."""
    text = (FOLDER / page).read_text(encoding="utf-8")
    return [Block(m[1], m[2] or "", m[3], text.count("\n", 0, m.start()) + 1) for m in _BLOCK.finditer(text)]


def edit(text: str, diff: str) -> str:
    """Apply a diff without line numbers. Raises ValueError unless its old lines stand at exactly one place."""
    rows = diff.splitlines()
    old = "".join(f"{row[1:]}\n" for row in rows if not row.startswith("+"))
    new = "".join(f"{row[1:]}\n" for row in rows if not row.startswith("-"))
    places = [m.start() for m in re.finditer(f"^(?={re.escape(old)})", text, re.MULTILINE)]
    if len(places) != 1:
        raise ValueError(f"these lines stand {len(places)} times, not once:\n{old}")
    return text[: places[0]] + new + text[places[0] + len(old) :]


class Reader:
    """Somebody who follows a guide in a checkout of their own."""

    def __init__(self, folder: Path, home: Path) -> None:
        """folder: where the checkout goes, with the programs. home: MOXIN_HOME, which several readers may share: what
        one made, the next finds in the ledger.
        """
        self.checkout = folder / "moxin"
        self.checkout.mkdir(parents=True)
        for name in _COPIED:
            shutil.copytree(ROOT / name, self.checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        for path in ROOT.iterdir():
            if path.is_file() and path.name != ".env":
                shutil.copy2(path, self.checkout)
        programs = folder / "bin"
        programs.mkdir()
        command = programs / "moxin"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m flows.cli "$@"\n')
        command.chmod(0o755)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "AWS_", "MOXIN_", "PYTEST_"))}
        self.environment = kept | {
            "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(self.checkout),
            "MOXIN_HOME": str(home),
        }

    def follow(self, page: str, limit: float) -> str:
        """Do what a guide says; all that its commands printed. Fails at the first block that does not work."""
        printed = []
        for block in blocks(page):
            where = f"docs/how_to/{page}:{block.line}"
            if block.language == "sh":
                printed.append(self._shell(block.text, where, limit))
            elif block.title:
                path = self.checkout / block.title
                path.parent.mkdir(parents=True, exist_ok=True)
                if block.language == "diff":
                    try:
                        path.write_text(edit(path.read_text(encoding="utf-8"), block.text), encoding="utf-8")
                    except ValueError as error:
                        raise AssertionError(f"{where}: {block.title}: {error}") from None
                else:
                    path.write_text(block.text, encoding="utf-8")
        return "".join(printed)

    def _shell(self, text: str, where: str, limit: float) -> str:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.checkout,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            out, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert process.returncode == 0, f"{where}: exit {process.returncode}\n{text}\n{out}"
        return out
