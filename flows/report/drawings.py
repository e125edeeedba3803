"""Pictures of a report, kept on this machine: matplotlib is loaded for what was never drawn, and for nothing else.

To load it and to draw ten pictures takes half the time of `moxin report`. A picture is found by what it was drawn from:
the numbers, the code of `flows.charts`, and matplotlib's version.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Generator
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows import charts
from stages.core.files import write_atomically
from stages.core.keys import sha256

KEPT = 30 * 86_400.0
"""Seconds for which a picture is kept that no report shows any more."""
_FOLDER: ContextVar[Path | None] = ContextVar("folder of pictures", default=None)


@contextlib.contextmanager
def kept_in(folder: Path | None) -> Generator[None]:
    """Pictures that are drawn meanwhile are kept in a folder, and taken from there; None: all are drawn."""
    token = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(token)
    for path in folder.glob("*.svg") if folder else ():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > KEPT:
                path.unlink()


def svg(draw: Callable[..., str], *arguments: Any) -> str:
    """What a function of `flows.charts` draws of these values, as SVG."""
    folder = _FOLDER.get()
    if folder is None:
        return draw(*arguments)
    about = json.dumps([draw.__name__, *_drawn_by(), *arguments], default=asdict)
    path = folder / f"{sha256(about.encode())}.svg"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = path.read_text(encoding="utf-8")
        os.utime(path)  # it is in use
        return text
    text = draw(*arguments)
    with contextlib.suppress(OSError):  # a full disk is no trouble of the report
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    return text


@functools.cache
def _drawn_by() -> tuple[str, str]:
    return sha256(Path(charts.__file__).read_bytes()), importlib.metadata.version("matplotlib")
