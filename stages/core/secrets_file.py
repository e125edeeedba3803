"""The file by which a launcher hands over secrets that nobody may see (`Secrets`), where it cannot set the environment
unseen. It is read again when credentials have ended: a launcher whose own are good for an hour writes it anew.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from stages.core.messages import Secrets
from stages.core.workspace import claim

VARIABLE = "MOXIN_SECRETS"
"""Where the file lies, for this process and those that it starts."""


def take_secrets(path: Path) -> Path | None:
    """Set the environment that a `Secrets` file holds; files in it get paths of their own, in variables of their
    names, under the folder that is returned.
    """
    secrets = Secrets.model_validate_json(path.read_bytes())
    os.environ.update(secrets.environment)
    os.environ[VARIABLE] = str(path.absolute())
    if secrets.files:
        folder = Path(tempfile.mkdtemp(prefix="secrets-", dir=os.environ.get("MOXIN_SCRATCH")))
        atexit.register(claim(folder).close)  # open until then: a folder of a killed process is swept up
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for name, text in secrets.files.items():
            (folder / name).touch(mode=0o600)
            (folder / name).write_text(text, encoding="utf-8")
            os.environ[name] = str(folder / name)
        return folder
    return None


def take_again() -> None:
    """Set the environment as the file says now. One that is gone, or half written, leaves it as it is."""
    if path := os.environ.get(VARIABLE):
        with contextlib.suppress(OSError, ValueError):
            os.environ.update(Secrets.model_validate_json(Path(path).read_bytes()).environment)
