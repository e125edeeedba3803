"""One task of a data stage: done in a folder of its own, which appears under its final name, with a receipt, in one
rename.

A job names a module-level function `function(folder, **arguments) -> value`. What a killed worker left is no result; a
job whose receipt lies there already is not done again.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

RECEIPT = "receipt.json"
ATTEMPTS = 4
"""How often a task may lose its worker before the stage gives up: a task that kills every worker must not go on for
ever.
"""

Job = tuple[str, str, str, dict[str, Any], str]
"""Module, function, folder, arguments, digest of the steps before."""


def fingerprint(job: Job) -> str:
    """What decides a task's result: its arguments, but of absolute paths the last part only (another attempt has its
    inputs elsewhere; which ones they are is in the work folder's name), the steps before it (whose files it reads: with
    other memory they may be cut otherwise), and the code of its package.
    """
    module, function, _, task, before = job
    return hashlib.sha256(
        json.dumps([module, function, _placeless(task), before, _code(module)], sort_keys=True).encode()
    ).hexdigest()


def _placeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _placeless(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_placeless(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


@functools.cache
def _code(module: str) -> str:
    """Digest of a module's package and of the modules that data stages share."""
    here = Path(__file__).parent
    folders = {Path(str(importlib.import_module(module).__file__)).parent, here, here.with_name("formats")}
    files = sorted(path for folder in folders for path in folder.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def receipt(job: Job) -> tuple[Any] | None:
    """The value of a finished task, in a tuple; None when it is not done, was done for other arguments, or has lost or
    cut files.
    """
    folder = Path(job[2])
    try:
        found = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
        if found["task"] != fingerprint(job) or any(
            (folder / path).stat().st_size != size for path, size in found["files"].items()
        ):
            return None
        return (found["value"],)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def execute(job: Job) -> None:
    """Do one task in a folder of its own, and bring that into place with its receipt."""
    module, name, folder, task, _ = job
    partial = Path(f"{folder}.{secrets.token_hex(4)}.{os.getpid()}")  # processes of two containers may have one number
    partial.mkdir(parents=True)
    function = importlib.import_module(module)
    for part in name.split("."):
        function = getattr(function, part)
    value = function(partial, **task)  # type: ignore[operator]
    files = {p.relative_to(partial).as_posix(): p.stat().st_size for p in partial.rglob("*") if p.is_file()}
    (partial / RECEIPT).write_text(
        json.dumps({"task": fingerprint(job), "value": value, "files": files}), encoding="utf-8"
    )
    if receipt(job) is None and Path(folder).exists():  # torn, or of other arguments
        os.rename(folder, f"{partial}.old")
        shutil.rmtree(f"{partial}.old", ignore_errors=True)
    try:
        os.rename(partial, folder)
    except OSError:  # somebody who was taken for dead finished the same task: of two equal results the first one stays
        shutil.rmtree(partial, ignore_errors=True)
