"""Parts and tasks for the pool of workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.deduplication import planted


def tasks(log: Path, count: int = 5) -> list[dict[str, Any]]:
    log.mkdir(exist_ok=True)
    return [{"number": n, "log": str(log)} for n in range(count)]


def runs(log: Path) -> list[int]:
    """How often each task ran."""
    return [len((log / str(n)).read_text()) for n in range(5)]


def corpus() -> list[list[str]]:
    texts = planted(3, size=90, copies=60)
    return [texts[n::4] for n in range(4)]


def parts(root: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((root / "out" / "documents").iterdir())}
