"""Make the environment of engine `colossalai` beside this Python's: what both have in the same version is taken from
here.

    python containers/colossalai/install.py FOLDER
    export MOXIN_COLOSSALAI_PYTHON=FOLDER/bin/python

On a machine that has the stage's environment (`make setup`) this brings ten packages, 60 MB; torch is not installed
twice. A folder that is there and whole is left as it is.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LOCK = Path(__file__).with_name("requirements.lock")


def missing() -> list[str]:
    """Lines of the lock that this Python has not, or has in another version."""
    lines = [
        line.strip()
        for line in LOCK.read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    ]
    return [line for line in lines if _installed(line.partition("==")[0]) != line.partition("==")[2]]


def _installed(name: str) -> str | None:
    try:
        return version(name).partition("+")[0]  # torch 2.13.0+cpu is torch 2.13.0
    except PackageNotFoundError:
        return None


def install(folder: Path) -> Path:
    """Make the environment in `folder`, once; returns its Python. Two that come at once make one."""
    folder.mkdir(parents=True, exist_ok=True)
    ready, python = folder / ".ready", folder / "bin" / "python"
    with open(folder / ".lock", "w", encoding="utf-8") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if ready.is_file() and ready.read_text(encoding="utf-8") == _recipe():
            return python
        venv.create(folder, clear=False, symlinks=True)
        inner = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        (inner / "base.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", str(python)]
        subprocess.run([*pip, "install", "--no-deps", "--no-build-isolation", *missing()], check=True)
        ready.write_text(_recipe(), encoding="utf-8")
    return python


def _recipe() -> str:
    return f"{sys.prefix}\n{sys.version}\n{LOCK.read_text(encoding='utf-8')}"


if __name__ == "__main__":
    print(install(Path(sys.argv[1])))
